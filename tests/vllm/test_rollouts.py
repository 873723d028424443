"""Rollouts of a real vLLM through the real client, sampler, controller and journal."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.events import StreamEnd
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import FinishReason, Rollout, TokenDelta
from tests.support.rollouts import wait_for_tokens
from tests.vllm.conftest import FIRST, TOKEN, Served
from tests.vllm.scoring import rollouts_of, score
from tests.vllm.served_model import CLOSING, COOL, EOS, USER, WARM

pytestmark = pytest.mark.vllm


def largest_gap(served: Served, folder, rollouts: Sequence[Rollout], temperature: float) -> float:
    """Between the engine's log-probs and the trainer's of the first weights."""
    scored = score(served.first, folder, [rollout.prompt_tokens for rollout in rollouts], rollouts, temperature)
    return max(float(np.abs(found - rollout.logprobs).max()) for found, rollout in zip(scored, rollouts, strict=True))


def test_logprobs_are_the_trainers_at_the_sampling_temperature(make_controller, vllm, tmp_path):
    controller = make_controller(group_size=2)
    groups = controller.collect(1)
    rollouts = rollouts_of(groups)
    controller.close()
    assert sum(len(rollout.tokens) for rollout in rollouts) > 8 * 200, (
        "max_new_tokens of the model's files does not count"
    )
    assert {segment.version for rollout in rollouts for segment in rollout.versions} == {FIRST}
    gap = largest_gap(vllm, tmp_path / "score", rollouts, COOL)
    print(f"largest log-prob gap, vLLM against score: {gap:.2e}")
    assert gap <= 1e-4
    with JournalReader(tmp_path / "journal.sqlite") as reader:
        assert list(reader.groups()) == groups, "every token is on disk once"


def test_every_end_that_any_file_names_ends_a_rollout(make_controller, vllm):
    """generation_config.json, tokenizer, config.json, a special token as stop string, and a stop string inside a token.

    generation_config.json's max_new_tokens (48) and sampling defaults must not count either.
    """
    controller = make_controller(
        temperature=WARM, group_size=16, max_new_tokens=300, stop=("</answer>", "<|user|>")
    )  # fmt: skip
    rollouts = rollouts_of(controller.collect(1))
    seen: Counter[object] = Counter()
    ends = {*EOS, USER, CLOSING}
    for rollout in rollouts:
        *body, last = rollout.tokens
        assert not ends.intersection(body), "nothing is written beyond an end"
        if rollout.finish_reason is FinishReason.LENGTH:
            assert len(rollout.tokens) == 300 and last not in ends
        else:
            assert last in ends
            seen[last] += 1
        assert rollout.stop == {CLOSING: "</answer>", USER: "<|user|>"}.get(last)
        assert rollout.stop is None or rollout.text.endswith(rollout.stop)
    assert seen.keys() == ends, seen
    assert max(len(rollout.tokens) for rollout in rollouts) > 48
    assert len({token for rollout in rollouts for token in rollout.tokens}) > 250, (
        "nothing is cut from the distribution"
    )


def test_a_stop_string_of_several_tokens_keeps_them_all(vllm):
    tokenizer, prompt = Tokenizer(vllm.first), [5, 6, 7]

    async def ask(stop: tuple[str, ...]) -> tuple[list[int], StreamEnd]:
        settings = {"seed": 3, "max_tokens": 60, "temperature": COOL, "top_p": 1.0}
        tokens: list[int] = []
        async with EngineClient(vllm.url, TOKEN) as client:
            async for event in client.stream(prompt, request_id="stop", stop=stop, **settings):
                if isinstance(event, StreamEnd):
                    return tokens, event
                tokens += event.tokens
        raise AssertionError("no end")

    free, end = asyncio.run(ask(()))
    assert end == StreamEnd(FinishReason.LENGTH) and len(free) == 60
    pieces = [tokenizer.decode([token]) for token in free]
    place = next(i for i, (one, two) in enumerate(pairwise(pieces)) if i > 20 and (one + two).isascii() and one and two)
    stop = pieces[place] + pieces[place + 1]
    tokens, end = asyncio.run(ask((stop,)))
    assert end == StreamEnd(FinishReason.STOP, stop)
    assert tokens == free[: len(tokens)] and len(tokens) > 1
    assert tokenizer.decode(tokens).endswith(stop) and stop not in tokenizer.decode(tokens[:-1])


def test_a_stream_gives_each_token_once_and_as_it_is_written(vllm):
    async def ask() -> list[tuple[float, TokenDelta | StreamEnd]]:
        settings = {"seed": 3, "max_tokens": 500, "temperature": COOL, "top_p": 1.0, "stop": ()}
        async with EngineClient(vllm.url, TOKEN) as client:
            return [(time.monotonic(), e) async for e in client.stream([5, 6], request_id="one", **settings)]

    *deltas, (_, end) = asyncio.run(ask())
    assert end == StreamEnd(FinishReason.LENGTH)
    assert sum(len(delta.tokens) for _, delta in deltas) == 500, "deltas, not what was written so far"
    assert len(deltas) > 20 and deltas[-1][0] - deltas[0][0] > 0.1


def test_rollouts_go_on_where_a_kill_and_aborts_left_them(make_controller, vllm, tmp_path):
    """The trainer's log-probs of the whole agree only if no token is missing, doubled, or read at another place."""
    settings = {"group_size": 2, "max_new_tokens": 500, "retries": 10}
    first = make_controller(**settings)
    first.begin(1)
    wait_for_tokens(first, 800)
    first.close()  # as after kill −9: what is durable stays
    second = make_controller(**settings)
    second.begin(1)
    wait_for_tokens(second, 800)
    asyncio.run(abort_all(vllm))
    rollouts = rollouts_of(second.collect(1))
    metrics = second.metrics()
    assert metrics["rollout/total_retried"] > 0
    written = sum(len(rollout.tokens) for rollout in rollouts)
    assert metrics["rollout/total_tokens"] <= written - 800, "the second process writes only what is missing"
    assert largest_gap(vllm, tmp_path / "score", rollouts, COOL) <= 1e-4


async def abort_all(vllm: Served) -> None:
    async with vllm.client() as client:
        await client.call("POST", "/abort_requests", {})
