"""A teacher on a server: what is asked, what is read, what is retried and what ends the run in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from aiohttp import web

from megatron_lwz.config import Config, validate
from megatron_lwz.config.sections import TeacherServer
from megatron_lwz.data.packing import build_micro_batch
from megatron_lwz.distributed import launch
from megatron_lwz.errors import ConfigError, EngineError
from megatron_lwz.training.grpo_batches import prepare_updates
from megatron_lwz.training.reference import first_state
from megatron_lwz.training.served_teacher import ServedTeacher, check_served_teacher, of_labels
from megatron_lwz.types import SequenceBatch
from tests.support.scripted_server import KEY, Scripted, serving
from tests.unit.training.tiny_state import MODEL

TEXTS = [[3, 5, 7, 9, 11], [4, 4, 2], [6, 1, 20, 21, 22, 23, 2]]
PROMPTS = [2, 1, 3]


@pytest.fixture(autouse=True, scope="module")
def groups() -> Iterator[None]:
    launch.initialize(validate({"model": {"architecture": MODEL}}))
    yield
    launch.shutdown()


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LWZ_TEACHER_TOKEN", KEY)


def logprob(text: list[int], place: int) -> float:
    """The scripted teacher: a function of the token and its place."""
    return -0.1 - (text[place] * 7 + place) % 13 / 4


def rows(text: list[int]) -> list[Any]:
    """vLLM's form: nothing for the first token, else the token among others."""
    return [
        None if place == 0 else {"999": {"logprob": -0.5, "rank": 1}, str(token): {"logprob": logprob(text, place)}}
        for place, token in enumerate(text)
    ]


def answer(text: Any, _number: int) -> web.Response:
    return web.json_response({"choices": [{"prompt_logprobs": rows(text)}], "model": "teacher"})


def batch(weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> SequenceBatch:
    lengths = torch.tensor([len(text) for text in TEXTS])
    tokens = torch.tensor([token for text in TEXTS for token in text])
    return SequenceBatch(
        tokens=tokens,
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=torch.tensor(PROMPTS),
        behaviour_logprobs=torch.zeros(len(tokens)),
        advantages=torch.ones(3),
        weights=torch.tensor(weights),
    )


def section(server: Scripted, **changes: Any) -> TeacherServer:
    return TeacherServer(url=server.url, model="teacher", backoff=0.01, **changes)


def test_response_tokens_get_their_log_probs_and_prompts_none() -> None:
    server = Scripted(answer)
    with serving(server):
        found = ServedTeacher(section(server)).logprobs(batch())
    wanted = [
        logprob(text, place) if place >= prompt else 0.0
        for text, prompt in zip(TEXTS, PROMPTS, strict=True)
        for place in range(len(text))
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))
    assert sorted(body["prompt"] for body in server.bodies) == sorted(TEXTS)
    assert all(body["prompt_logprobs"] == 0 and body["model"] == "teacher" for body in server.bodies)


def test_no_more_requests_at_once_than_allowed() -> None:
    server = Scripted(answer, delay=0.05)
    with serving(server):
        ServedTeacher(section(server, max_requests=2)).logprobs(batch())
    assert server.most == 2 and len(server.bodies) == 3


def test_a_busy_server_is_asked_again() -> None:
    server = Scripted(lambda text, number: web.Response(status=503) if number < 2 else answer(text, number))
    with serving(server):
        found = ServedTeacher(section(server, max_requests=1)).logprobs(batch())
    assert found[-1] == pytest.approx(logprob(TEXTS[2], 6)) and len(server.bodies) == 5


def spoilt(change: Callable[[list[Any]], Any]) -> Callable[[Any, int], web.Response]:
    return lambda text, _: web.json_response({"choices": [{"prompt_logprobs": change(rows(text))}]})


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (lambda *_: web.Response(status=404, text="no such model"), "answered 404: no such model"),
        (lambda *_: web.Response(text="<html>"), "answered no JSON"),
        (lambda *_: web.json_response({"choices": [{"text": "x"}]}), "gave no prompt log-probs of the tokens"),
        (spoilt(lambda found: found[:-1]), "log-probs for"),
        (spoilt(lambda found: [{"999": {"logprob": -1.0}}] * len(found)), "with the policy's tokens"),
        (spoilt(lambda found: [{k: {"logprob": -1e999} for k in row or {}} for row in found]), "not finite"),
        (spoilt(lambda found: [{k: {"logprob": 2.0} for k in row or {}} for row in found]), "above 0"),
    ],
)
def test_what_is_no_answer_ends_the_run_in_one_line(said: Any, advice: str) -> None:
    server = Scripted(said)
    with serving(server), pytest.raises(EngineError) as caught:
        ServedTeacher(section(server, retries=0)).logprobs(batch())
    assert advice in str(caught.value) and server.url in str(caught.value) and "\n" not in str(caught.value)


def config_of(server: Scripted, **changes: Any) -> Config:
    settings = {"kl_coefficient": 1.0, "kl_placement": "reward", "zero_variance": "keep"}
    settings["teacher_server"] = {"url": server.url or "http://127.0.0.1:9", "model": "teacher", "retries": 0}
    return validate(
        {
            "model": {"architecture": MODEL},
            "data": {"prompts": "p.jsonl"},
            "training": {"precision": "fp32", "tokens_per_micro_batch": 8},
            "rollout": {"temperature": 1.0},
            "grpo": settings | changes,
        }
    )


def test_the_reference_of_every_micro_batch_is_the_server_s_and_left_out_texts_are_not_asked_for() -> None:
    server = Scripted(answer)
    with serving(server):
        state, reference = first_state(config_of(server))
        (update,) = prepare_updates(state, batch((1.0, 0.0, 1.0)), state.config, reference)
    assert sorted(body["prompt"] for body in server.bodies) == sorted([TEXTS[0], TEXTS[2]])
    assert update.reference is not None and len(update.reference) == len(update.micro_batches) == 2
    found = [
        value.item()
        for micro_batch, values in zip(update.micro_batches, update.reference, strict=True)
        for value, weight in zip(values, micro_batch.weights, strict=True)
        if weight > 0
    ]
    wanted = [logprob(t, place) for t, p in ((TEXTS[0], 2), (TEXTS[2], 3)) for place in range(p, len(t))]
    assert sorted(found) == pytest.approx(sorted(wanted))


@pytest.mark.parametrize("context_size", [1, 2])
def test_every_context_parallel_rank_gets_the_log_probs_of_its_own_labels(context_size: int) -> None:
    logprobs = torch.arange(15) + 100.0  # of all tokens of the batch
    found: dict[int, float] = {}
    for rank in range(context_size):
        share = build_micro_batch(
            batch(), [2, 0, 1], tensor_size=1, context_size=context_size, context_rank=rank, sequence_parallel=False,
            token_weights=torch.ones(15),
        )  # fmt: skip
        values = of_labels(logprobs, share)
        assert values.shape == share.labels.shape and not values[share.source < 0].any()
        found |= {int(source): float(v) for source, v in zip(share.source, values, strict=True) if source >= 0}
    responses = [begin + place for begin, text, prompt in zip((0, 5, 8), TEXTS, PROMPTS, strict=True)
                 for place in range(prompt, len(text))]  # fmt: skip
    assert set(responses) <= set(found)
    assert all(value == 100.0 + token for token, value in found.items())


def test_a_server_that_is_not_there_is_said_at_the_start() -> None:
    with pytest.raises(EngineError, match="no connection"):
        check_served_teacher(config_of(Scripted(answer)))


def test_settings_that_do_not_fit_are_refused() -> None:
    server = Scripted(answer)
    with pytest.raises(ConfigError, match=r"grpo\.teacher'.*second teacher"):
        config_of(server, teacher="models/t").check_grpo()
    with pytest.raises(ConfigError, match=r"teacher_server\.model.*name the model"):
        config_of(server, teacher_server={"url": "http://127.0.0.1:9"}).check_grpo()
    with pytest.raises(ConfigError, match=r"teacher_server\.url.*kl_coefficient 0"):
        config_of(server, kl_coefficient=0.0).check_grpo()
    warm = config_of(server)
    warm = warm.model_copy(update={"rollout": warm.rollout.model_copy(update={"temperature": 0.7})})
    with pytest.raises(ConfigError, match=r"rollout\.temperature.*at temperature 1"):
        check_served_teacher(warm)
