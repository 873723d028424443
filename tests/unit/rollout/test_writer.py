"""A group's rollouts are written together: each end is told as it comes, and the first failure ends the others."""

from __future__ import annotations

import asyncio

import pytest

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.rollout.writer import RolloutWriter
from megatron_lwz.types import FinishReason
from tests.support.rollouts import prompts
from tests.support.synthetic_engine import CharTokenizer

SEEDS = [11, 12, 13, 14]


@pytest.fixture
def writer(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    yield RolloutWriter(EnginePool([], concurrency=4), journal, CharTokenizer(), RolloutSection())
    journal.close()


def group() -> GroupDraft:
    drafts = [Draft(0, index) for index in range(4)]
    drafts[0].reason = FinishReason.STOP
    return GroupDraft(0, "training", prompts(1)[0], (1,), 1, drafts)


def test_what_is_unfinished_is_written_and_each_end_is_told_as_it_comes(writer, monkeypatch) -> None:
    seeds, ends = [], []

    async def write(group: GroupDraft, draft: Draft, seed: int) -> None:
        seeds.append(seed)
        await asyncio.sleep(0.05 * (4 - draft.index))

    monkeypatch.setattr(writer, "write", write)
    assert asyncio.run(writer.write_group(group(), SEEDS.__getitem__, lambda draft: ends.append(draft.index)))
    assert seeds == SEEDS[1:] and ends == [3, 2, 1]
    complete = group()
    for draft in complete.drafts:
        draft.reason = FinishReason.STOP
    assert not asyncio.run(writer.write_group(complete, SEEDS.__getitem__, ends.append))


def test_the_first_failure_ends_the_others(writer, monkeypatch) -> None:
    ended = []

    async def write(group: GroupDraft, draft: Draft, seed: int) -> None:
        if draft.index == 2:
            await asyncio.sleep(0)
            raise RequestFailure("http://engine", "refused", Failure.REFUSED)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(draft.index)
            raise

    async def fail() -> list[int]:
        with pytest.raises(RequestFailure, match="refused"):
            await writer.write_group(group(), SEEDS.__getitem__, lambda draft: None)
        return list(ended)

    monkeypatch.setattr(writer, "write", write)
    assert asyncio.run(fail()) == [1, 3], "before it is raised, not when the loop ends"
