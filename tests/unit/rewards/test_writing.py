"""The writing reward against real HTTP servers: ours and vLLM's shapes, and every way in which a server can fail."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from megatron_lwz.config import validate
from megatron_lwz.config.sections import RewardSection, WritingReward
from megatron_lwz.errors import ConfigError
from megatron_lwz.http.server import make_app, read_object
from megatron_lwz.rewards.composite import build_rewards, component_weights
from megatron_lwz.rewards.writing import WritingComponent
from megatron_lwz.types import LARGEST_SCORE, ComponentScore, FinishReason, Prompt, Rollout

Answer = Callable[[dict[str, Any]], Awaitable[web.StreamResponse]]
PROMPT = Prompt("p", "Write about rain.")
TEXTS = (
    "<think>a plan</think><answer>some rain</answer>",
    "<think>no answer",
    "<think>b</think><answer>rain, rain</answer>",
)


def rollout(index: int, text: str) -> Rollout:
    return Rollout(f"r{index}", "p", index, (1,), (2,), (0.0,), (), FinishReason.STOP, text)


def ask(answer: Answer, *, token: str | None = None, times: int = 1, **section: Any) -> tuple[Any, ...]:
    """(scores of the last asking, component, bodies the server got) of a group of three, the second without an answer."""
    bodies: list[dict[str, Any]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        bodies.append({"path": request.path} | await read_object(request))
        return await answer(bodies[-1])

    async def main() -> tuple[list[ComponentScore], WritingComponent]:
        routes = [web.post(f"/{name}", handle) for name in ("score", "pooling", "classify")]
        runner = web.AppRunner(make_app(routes, token=token))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        settings = {"backoff": 0.01, "timeout": 5.0, "model": "rm"} | section
        url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
        async with WritingComponent(WritingReward(url=url, **settings), token) as component:
            for _ in range(times):
                scores = await component.score(PROMPT, [rollout(i, text) for i, text in enumerate(TEXTS)])
        await runner.cleanup()
        return scores, component

    return *asyncio.run(main()), bodies


async def ours(body: dict[str, Any]) -> web.Response:
    scores = [float(len(item["answer"])) for item in body["items"]]
    return web.json_response({"model": "rm", "version": "abc", "scores": scores})


async def pooling(body: dict[str, Any]) -> web.Response:
    rows = [{"index": i, "object": "pooling", "data": [len(text) / 10]} for i, text in enumerate(body["input"])]
    return web.json_response({"object": "list", "model": body["model"], "data": rows[::-1], "usage": {}})


async def classify(body: dict[str, Any]) -> web.Response:
    rows = [{"index": i, "label": "score", "probs": [-2.5], "num_classes": 1} for i, _ in enumerate(body["input"])]
    return web.json_response({"object": "list", "model": "rm", "data": rows})


def test_our_server_is_asked_for_answers_only_and_a_missing_one_is_masked() -> None:
    scores, component, (body,) = ask(ours, token="t")
    assert [(score.value, score.valid) for score in scores] == [(9.0, True), (0.0, False), (10.0, True)]
    assert scores[0].version == "writing/rm@abc" and scores[0].details == {"raw": 9.0}
    assert body["items"][0] == {"prompt": "Write about rain.", "answer": "some rain", "thinking": ""}
    assert component.metrics() == {"writing/requests": 1, "writing/scored": 2, "writing/masked/no_answer": 1}


def test_thinking_is_sent_when_the_model_reads_it_and_batches_are_cut() -> None:
    scores, component, bodies = ask(ours, thinking=True, batch=1)
    assert [body["items"][0]["thinking"] for body in bodies] == ["a plan", "b"]
    assert [score.valid for score in scores] == [True, False, True] and component.counters["requests"] == 2


def test_vllm_pooling_takes_its_place() -> None:
    scores, _, (body,) = ask(pooling, api="pooling")
    text = "<|user|>: Write about rain. <|assistant|>: some rain<|im_end|>"
    assert body == {
        "path": "/pooling", "model": "rm", "input": [text, text.replace("some rain", "rain, rain")],
        "use_activation": False, "task": "classify",
    }  # fmt: skip
    assert [score.value for score in scores] == pytest.approx([len(text) / 10, 0.0, (len(text) + 1) / 10])


def test_vllm_classify_takes_its_place_and_scores_can_be_squeezed() -> None:
    scores, _, (body,) = ask(classify, api="classify", template="chat", transform="sigmoid")
    assert body["path"] == "/classify" and body["input"][0].startswith("<|im_start|>system")
    assert scores[0].value == pytest.approx(1 / (1 + math.exp(2.5))) and scores[0].details["raw"] == -2.5


def test_a_text_that_the_server_refuses_is_masked_alone() -> None:
    async def one_too_long(body: dict[str, Any]) -> web.Response:
        return web.json_response({"model": "rm", "version": "1", "scores": [None, 3.0], "errors": {"0": "too long"}})

    scores, component, _ = ask(one_too_long)
    assert [score.valid for score in scores] == [False, False, True]
    assert component.counters["masked/refused_text"] == 1


async def broken(body: dict[str, Any]) -> web.Response:
    return web.Response(text="{not json", content_type="application/json")


async def refused(body: dict[str, Any]) -> web.Response:
    raise web.HTTPBadRequest(text="no")


async def failing(body: dict[str, Any]) -> web.Response:
    raise web.HTTPServiceUnavailable(text="busy")


async def slow(body: dict[str, Any]) -> web.Response:
    await asyncio.sleep(1.5)  # the test's server waits for it in the end
    raise AssertionError


def answering(**answer: Any) -> Answer:
    async def give(body: dict[str, Any]) -> web.Response:
        return web.json_response({"model": "rm", "version": "1"} | answer)

    return give


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (broken, "contract", 2),
        (refused, "refused", 1),
        (failing, "server", 3),
        (slow, "timeout", 3),
        (answering(scores=[1.0]), "contract", 2),
        (answering(scores=["high", "low"]), "contract", 2),
        (answering(scores=[True, False]), "contract", 2),
        (answering(scores=[float("nan"), 10**400]), "refused_text", 1),
        (answering(scores=[1e39, -1e13]), "refused_text", 1),
        (answering(scores={"a": [[[]]]}), "contract", 2),
        (answering(error="out of memory"), "contract", 2),
    ],
)
def test_every_failure_masks_the_group_and_is_counted(answer: Answer, reason: str, requests: int) -> None:
    scores, component, bodies = ask(answer, retries=2, timeout=0.2 if answer is slow else 20.0)
    assert [score.valid for score in scores] == [False] * 3
    assert component.counters[f"masked/{reason}"] == 2 and len(bodies) == requests
    assert component.counters["retried"] == requests - 1


@pytest.mark.parametrize("transform", ["none", "sigmoid"])
@pytest.mark.parametrize("number", [float("nan"), float("-inf"), 1e39, 2 * LARGEST_SCORE])
def test_a_number_that_cannot_be_a_score_masks_its_text_alone(transform: str, number: float) -> None:
    scores, component, bodies = ask(answering(scores=[number, 1.0]), transform=transform)
    assert [score.valid for score in scores] == [False, False, True]
    assert component.counters["masked/refused_text"] == 1 and component.counters["scored"] == 1 and len(bodies) == 1


def test_a_wrong_token_and_a_server_that_is_gone_mask_too() -> None:
    async def main(url: str) -> list[ComponentScore]:
        section = WritingReward(url=url, retries=1, backoff=0.01, timeout=1.0)
        async with WritingComponent(section) as component:
            return await component.score(PROMPT, [rollout(0, TEXTS[0])])

    assert [score.valid for score in asyncio.run(main("http://127.0.0.1:9"))] == [False]


def test_a_server_that_recovers_is_used_again() -> None:
    answers = [failing, failing, ours]

    async def recovering(body: dict[str, Any]) -> web.StreamResponse:
        return await answers.pop(0)(body)

    scores, component, _ = ask(recovering)
    assert scores[0].valid and component.counters["retried"] == 2


def test_the_component_is_part_of_the_run_when_it_has_a_model() -> None:
    assert [reward.name for reward in build_rewards(RewardSection())] == ["length", "format"]
    section = RewardSection(writing=WritingReward(url="http://127.0.0.1:1", weight=0.5))
    rewards = build_rewards(section)
    assert [reward.name for reward in rewards] == ["length", "format", "writing"]
    assert component_weights(section, ["length", "format", "writing"]).tolist() == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"url": "localhost:8000"}, "reward.writing.url"),
        ({"url": "http://h:1", "api": "pooling"}, "reward.writing.model"),
    ],
)
def test_mistakes_name_their_key(section: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        WritingComponent(validate({"reward": {"writing": section}}).reward.writing)
