"""The continuation reward against a scripted server: what is asked, what a gain is worth, and what is masked."""

import asyncio
import math

import pytest
from aiohttp import web

from megatron_lwz.config import validate
from megatron_lwz.config.sections import ContinuationReward, RewardSection
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError
from megatron_lwz.http.server import read_object
from megatron_lwz.rewards.composite import build_rewards
from megatron_lwz.rewards.continuation import ContinuationComponent, check_continuations, percent, reward_of
from megatron_lwz.rewards.continued_text import context
from megatron_lwz.types import Prompt
from tests.support.engine_model import write_engine_model
from tests.support.scoring import rollout
from tests.support.scripted_server import KEY, Scripted, serving

ROW = Prompt("p", "The storm reached the harbour.", extra={"continuation": " By morning the boats were gone. "})
PLAN = "<think>boats are lost</think><answer>It blew.</answer>"
OTHER = "<think>a picnic</think><answer>It was sunny.</answer>"
SILENT = "<answer>It blew.</answer>"


class Likelihoods(Scripted):
    """Answers are held back while `held`."""

    held = False

    async def handle(self, request):
        body = await read_object(request)
        self.bodies.append({"path": request.path} | body)
        while self.held:
            await asyncio.sleep(0.01)
        said = self.answer(body, len(self.bodies))
        if isinstance(said, web.StreamResponse):
            return said
        return web.json_response({"model": "m", "version": "v", "scores": said})


def likely(body, _):
    """−3 nats per token without a text, and a gain of 0.01 for every letter of a plan that names boats."""
    return [-3.0 + 0.01 * len(item["written"]) * ("boats" in item["written"]) for item in body["items"]]


def ask(server, *texts, row=ROW, **settings):
    async def run():
        section = ContinuationReward(url=server.url, backoff=0.01, **settings)
        async with ContinuationComponent(section, KEY) as component:
            rollouts = [rollout(text, index=place) for place, text in enumerate(texts)]
            one_by_one = [await component.score_one(row, one) for one in rollouts]
            together = list(await component.score(row, rollouts))
            assert together == one_by_one or not all(score.valid for score in together)
            return together, component.metrics()

    with serving(server):
        return asyncio.run(run())


def test_the_gain_is_that_of_the_thinking_and_the_baseline_is_asked_for_once():
    server = Likelihoods(likely)
    scores, counted = ask(server, PLAN, OTHER, SILENT, score="nats")
    assert [score.value for score in scores] == pytest.approx([0.14, 0.0, 0.0]) and all(score.valid for score in scores)
    assert scores[0].details == pytest.approx({"percent": 100 * (1 - math.exp(-0.14)), "nats": 0.14, "without": -3.0})
    assert scores[0].version == "continuation/1/m@v"
    written = [[item["written"] for item in body["items"]] for body in server.bodies]
    assert written == [[""], ["boats are lost"], ["a picnic"], ["boats are lost", "a picnic"]], (
        "no request without thinking"
    )
    first = server.bodies[0]
    assert first["path"] == "/likelihood" and first["longest"] == 1024
    assert first["items"] == [{"prompt": ROW.text, "continuation": "By morning the boats were gone.", "written": ""}]
    assert counted == {"continuation/requests": 4.0, "continuation/scored": 5.0}


def test_the_answer_is_read_where_the_request_asks_for_a_plan():
    server = Likelihoods(likely)
    ask(server, PLAN, reads="answer")
    assert server.bodies[1]["items"][0]["written"] == "It blew."


@pytest.mark.parametrize(
    ("gain", "less", "level"),
    [(0.0, 0.0, 0.0), (0.0004, 0.04, 0.0), (0.0006, 0.06, 0.5), (0.0099, 0.985, 0.5), (0.0102, 1.015, 0.9),
     (0.0199, 1.97, 0.9), (0.0203, 2.01, 1.0), (5.0, 99.33, 1.0), (-0.5, -64.87, 0.0), (-1e3, -100.0, 0.0)],
)  # fmt: skip
def test_levels_are_those_of_the_paper(gain, less, level):
    assert percent(gain) == reward_of(gain, "percent") == pytest.approx(less, abs=0.01)
    assert reward_of(gain, "levels") == level and reward_of(gain, "nats") == gain


def test_a_row_without_a_continuation_is_masked_and_costs_no_request():
    for extra in ({}, {"continuation": "  "}, {"continuation": 3}):
        server = Likelihoods(likely)
        scores, counted = ask(server, PLAN, row=Prompt("p", "?", extra=extra))
        assert not scores[0].valid and server.bodies == [] and counted["continuation/masked/no_continuation"] == 2


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (web.Response(status=400), "refused"),
        (web.json_response({"model": "m", "version": "v", "scores": []}), "contract"),
        (web.json_response({"model": "m", "version": "v", "scores": ["a"]}), "contract"),
        (web.json_response([]), "contract"),
        (web.Response(text="[" * 100_000), "contract"),
    ],
)
def test_a_failure_masks_and_is_counted_and_the_baseline_is_asked_for_again(said, reason):
    def answer(body, _):
        return web.Response(status=said.status, body=said.body, content_type="application/json")

    scores, counted = ask(Likelihoods(answer), PLAN, OTHER, retries=0)
    assert [(score.value, score.valid) for score in scores] == [(0.0, False)] * 2
    assert counted[f"continuation/masked/{reason}"] == 3 and counted["continuation/masked/no_baseline"] == 4


def test_a_text_that_is_too_long_is_masked_alone():
    scores, counted = ask(
        Likelihoods(lambda body, n: [None if "picnic" in item["written"] else -1.0 for item in body["items"]]),
        PLAN,
        OTHER,
    )
    assert [score.valid for score in scores] == [True, False] and counted["continuation/masked/refused_text"] == 2


class PromptLogprobs(Likelihoods):
    """vLLM's answer: of each prompt token but the first, its log-prob by id, with that of the likeliest token."""

    async def handle(self, request):
        body = await read_object(request)
        self.bodies.append({"path": request.path} | body)
        choices = [
            {"index": place, "text": "x", "prompt_logprobs": self.answer(ids, place)}
            for place, ids in enumerate(body["prompt"])
        ]
        return web.json_response({"model": "m", "choices": choices[::-1]})


def test_a_vllm_server_gives_the_same_from_its_prompt_log_probs(tmp_path):
    write_engine_model(tmp_path)
    encode = Tokenizer(tmp_path).encode
    settings = {"api": "completions", "model": "frozen", "hf": str(tmp_path), "longest": 20, "score": "nats"}

    def logprobs(ids, _):
        more = 0.5 * ("boats" in Tokenizer(tmp_path).decode(ids[:-20]))
        return [None, *({str(i): {"logprob": more - i / 100, "rank": 2}, "317": {"logprob": -0.1}} for i in ids[1:])]

    server = PromptLogprobs(logprobs)
    scores, counted = ask(server, PLAN, OTHER, SILENT, **settings)
    assert [score.value for score in scores] == pytest.approx([0.5, 0.0, 0.0]) and counted["continuation/scored"] == 5
    after = encode(ROW.extra["continuation"].strip())[:20]
    assert scores[0].details["without"] == pytest.approx(-sum(after) / 2000) and scores[0].version == "continuation/1/m"
    assert server.bodies[0] == {
        "path": "/v1/completions", "model": "frozen", "max_tokens": 1, "prompt_logprobs": 0,
        "prompt": [encode(context("text", ROW.text)) + after],
    }  # fmt: skip
    assert server.bodies[-1]["prompt"][1] == encode(context("text", ROW.text, "a picnic")) + after


@pytest.mark.parametrize(
    "said", [lambda ids, _: None, lambda ids, _: [None] * 3, lambda ids, _: [{"7": {"logprob": -1.0}}] * len(ids)]
)
def test_another_answer_of_a_vllm_server_masks(tmp_path, said):
    write_engine_model(tmp_path)
    scores, counted = ask(PromptLogprobs(said), PLAN, api="completions", model="m", hf=str(tmp_path), retries=0)
    assert not scores[0].valid and counted["continuation/masked/contract"] == 2
    for settings, key in (({"hf": str(tmp_path)}, "model"), ({"model": "m"}, "hf")):
        with pytest.raises(ConfigError, match=rf"reward\.continuation\.{key}"):
            ContinuationComponent(ContinuationReward(url="http://127.0.0.1:1", api="completions", **settings))


def test_a_rollout_that_is_given_up_leaves_the_baseline_to_the_others():
    server = Likelihoods(likely)
    server.held = True

    async def run():
        async with ContinuationComponent(ContinuationReward(url=server.url), KEY) as component:
            tasks = [asyncio.ensure_future(component.score_one(ROW, rollout(PLAN, index=place))) for place in range(2)]
            while not server.bodies:
                await asyncio.sleep(0.01)
            tasks[0].cancel()
            await asyncio.wait(tasks[:1])
            server.held = False
            return await asyncio.gather(*tasks, return_exceptions=True)

    with serving(server):
        given_up, kept = asyncio.run(run())
    assert isinstance(given_up, asyncio.CancelledError) and kept.value == 1.0


def test_the_context_ends_where_the_continuation_begins():
    assert context("text", " Go on. ") == context("text", "Go on.", " ") == "Go on.\n\n"
    assert context("text", "Go on.", "calm") == "Go on.\n\nNotes for the text that follows:\ncalm\n\n"
    assert context("text", "接着写。", "平静") == "接着写。\n\n下文的构思：\n平静\n\n"
    chat = context("chat", "Go on.<|im_end|>", "calm")
    assert chat.startswith("<|im_start|>user\nGo on.<|im_end|>\n\nNotes") and chat.endswith("<|im_start|>assistant\n")
    meant = [chat[start:stop] for start, stop in chat.own]
    assert meant == ["<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"], "what the request spells out is text"


def test_it_is_a_component_only_when_asked_for_and_needs_rows_with_a_continuation():
    section = RewardSection(continuation=ContinuationReward(url="http://127.0.0.1:1", weight=0.5))
    assert [reward.name for reward in build_rewards(section)] == ["length", "format", "continuation"]
    assert [reward.name for reward in build_rewards(RewardSection())] == ["length", "format"]
    check_continuations(section.continuation, "p.jsonl", [Prompt("a", "?"), ROW])
    check_continuations(ContinuationReward(), "p.jsonl", [Prompt("a", "?")])
    with pytest.raises(ConfigError, match=r"data\.prompts.*p\.jsonl.*no row has a text `continuation`"):
        check_continuations(section.continuation, "p.jsonl", [Prompt("a", "?")])
    with pytest.raises(ConfigError, match=r"reward\.continuation\.url"):
        ContinuationComponent(validate({}).reward.continuation)
