"""New weights by disk while a real vLLM writes: nothing is lost, each token names its writer, no stale prefix is read."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from megatron_lwz.rollout.events import StreamEnd
from megatron_lwz.types import FinishReason, WeightVersion
from tests.support.rollouts import wait_for_tokens
from tests.support.waiting import until
from tests.vllm.conftest import FIRST
from tests.vllm.scoring import rollouts_of, score
from tests.vllm.served_model import COOL

pytestmark = pytest.mark.vllm

SECOND = WeightVersion(1, 1, "second")
TOLERANCE = 1e-4


def test_weights_change_in_the_middle_of_rollouts(make_controller, vllm, tmp_path):
    pool = vllm.pool()
    pool.push_weights(vllm.first, FIRST)
    controller = make_controller(pool, group_size=2, max_new_tokens=600)
    controller.begin(1)
    wait_for_tokens(controller, 1500)
    pool.push_weights(vllm.second, SECOND)
    rollouts = rollouts_of(controller.collect(1))
    assert controller.metrics()["rollout/total_retried"] == 0, "running requests go on"
    prompts = [rollout.prompt_tokens for rollout in rollouts]
    by_first, by_second = (
        score(folder, tmp_path / folder.name, prompts, rollouts, COOL) for folder in (vllm.first, vllm.second)
    )
    mixed = 0
    for rollout, old, new in zip(rollouts, by_first, by_second, strict=True):
        starts = {segment.version: segment.start for segment in rollout.versions}
        cut = starts.get(SECOND, len(rollout.tokens))
        mixed += 0 < cut < len(rollout.tokens)
        assert np.abs(old[:cut] - rollout.logprobs[:cut]).max(initial=0) <= TOLERANCE, "no token of the second weights"
        assert np.abs(new[cut:] - rollout.logprobs[cut:]).max(initial=0) <= TOLERANCE, (
            "nor one of the first, nor their keys"
        )
    assert mixed >= 4, "ended too early to tell"


def test_a_prompt_that_the_old_weights_read_is_read_again(make_controller, vllm, tmp_path):
    before = make_controller(group_size=2, max_new_tokens=20)
    rollouts_of(before.collect(1))
    before.close()
    assert asyncio.run(cached_tokens(vllm)) > 0, "samples of a group share the prompt's keys"
    pool = vllm.pool()
    pool.push_weights(vllm.second, SECOND)
    after = make_controller(pool, group_size=2, max_new_tokens=20, name="after.sqlite")
    rollouts = rollouts_of(after.collect(1))
    scored = score(vllm.second, tmp_path / "score", [r.prompt_tokens for r in rollouts], rollouts, COOL)
    for rollout, found in zip(rollouts, scored, strict=True):
        assert np.abs(found - rollout.logprobs).max() <= TOLERANCE


async def cached_tokens(vllm) -> float:
    """Prompt tokens whose keys came from the prefix cache, since the start."""
    async with vllm.client() as client, client.session.get(vllm.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


def test_pause_holds_requests_between_two_tokens_and_abort_ends_them(vllm):
    settings = {"seed": 1, "max_tokens": 1500, "temperature": COOL, "top_p": 1.0, "stop": ()}

    async def run() -> tuple[int, int, int, StreamEnd]:
        counts, ended = [0], asyncio.Event()
        end: list[StreamEnd] = []

        async def read() -> None:
            async with vllm.client() as reader:
                async for event in reader.stream([5, 6, 7], request_id="held", **settings):
                    if isinstance(event, StreamEnd):
                        end.append(event)
                        ended.set()
                    else:
                        counts[0] += len(event.tokens)

        async with vllm.client() as client:
            task = asyncio.create_task(read())
            await until(lambda: counts[0] >= 20)
            await client.pause()
            assert (await client.call("GET", "/is_paused"))["is_paused"] is True
            await asyncio.sleep(0.5)
            held = counts[0]
            await asyncio.sleep(1.0)
            still = counts[0]
            await client.resume()
            await until(lambda: counts[0] >= still + 20)
            await client.abort(["other"])
            await client.abort(["held"])
            await asyncio.wait_for(ended.wait(), 30)
            await task
        return held, still, counts[0], end[0]

    held, still, total, end = asyncio.run(run())
    assert held == still < total < settings["max_tokens"]
    assert end.reason is FinishReason.ABORT


def test_the_engine_tells_its_version_and_takes_back_a_restart(vllm):
    pool = vllm.pool()
    pool.push_weights(vllm.second, SECOND)

    async def version() -> str | None:
        async with vllm.client() as client:
            return await client.weight_version()

    assert asyncio.run(version()) == str(SECOND)
    pool.push_weights(vllm.first, replace(FIRST, attempt=2))
    assert asyncio.run(version()) == str(replace(FIRST, attempt=2))
