"""Nothing waits longer than it must: rollouts are scored when they are finished, groups handed over when they are certain."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable

import pytest
from aiohttp import web

from megatron_lwz.types import ComponentScore, PerRolloutReward
from tests.support.synthetic_engine import Engine
from tests.support.waiting import PATIENCE


class Holding(Engine):
    """Holds the requests that `held(request number, prompt)` names until `go` is set (or half a minute has passed)."""

    def __init__(self, held: Callable[[int, str], bool]) -> None:
        super().__init__(length=lambda seed: 9)
        self.held, self.go, self.number = held, threading.Event(), 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        prompt = "".join(map(chr, (await request.json())["prompt"]))
        number, self.number = self.number, self.number + 1
        end = time.monotonic() + 30
        while self.held(number, prompt) and not self.go.is_set() and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return await super().complete(request)


class Early:
    """Scores rollouts one by one; `settle` adds what it saw of the group. Tells what it was asked."""

    name = "early"

    def __init__(self, told: Callable[[str], None] = lambda rollout: None, failing: tuple[int, ...] = ()) -> None:
        self.asked: list[str] = []
        self._told, self._failing = told, failing

    async def score(self, prompt, rollouts):
        raise AssertionError("its rollouts are scored one by one")

    async def score_one(self, prompt, rollout):
        self.asked.append(rollout.id)
        self._told(rollout.id)
        if rollout.index in self._failing:
            raise RuntimeError("cannot read this one")
        return ComponentScore(float(rollout.index))

    def settle(self, scores):
        return [ComponentScore(score.value + 10 * len(scores)) for score in scores]


class Whole:
    name = "whole"

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def score(self, prompt, rollouts):
        self.asked.append([rollout.index for rollout in rollouts])
        return [ComponentScore(1.0)] * len(rollouts)


def test_a_finished_rollout_is_scored_while_its_group_is_still_written(make_controller, start_engine, tmp_path):
    engine = Holding(lambda number, prompt: number == 2)
    durable = []

    def told(rollout: str) -> None:
        with sqlite3.connect(f"file:{tmp_path}/journal.sqlite?mode=ro", uri=True) as db:
            ended = db.execute("SELECT group_id || '-' || rollout FROM finished").fetchall()
        durable.append((rollout,) in ended)
        if len(durable) == 2:
            engine.go.set()

    early, whole = Early(told), Whole()
    assert isinstance(early, PerRolloutReward) and not isinstance(whole, PerRolloutReward)
    begun = time.monotonic()
    (group,) = make_controller(start_engine(engine), rewards=[early, whole]).collect(1)
    assert time.monotonic() - begun < 25, "the third rollout was held until the others had been scored"
    assert durable == [True] * 3, "nothing is scored before it is durable"
    assert sorted(early.asked) == ["0-0", "0-1", "0-2"] and whole.asked == [[0, 1, 2]]
    assert [scores["early"].value for scores in group.scores] == [30, 31, 32]


def test_after_a_kill_finished_rollouts_are_scored_again_and_scores_that_are_durable_are_not(
    make_controller, start_engine
):
    engine = Holding(lambda number, prompt: number == 2)
    url = start_engine(engine)
    seen = threading.Semaphore(0)
    first = Early(lambda rollout: seen.release())
    controller = make_controller(url, rewards=[first])
    controller.begin(1)
    assert seen.acquire(timeout=PATIENCE) and seen.acquire(timeout=PATIENCE)
    controller.close()
    engine.go.set()
    second = Early()
    again = make_controller(url, rewards=[second])
    (group,) = again.collect(1)
    assert set(first.asked) < set(second.asked) == {"0-0", "0-1", "0-2"}
    again.close()
    third = Early()
    assert make_controller(url, rewards=[third]).collect(1) == [group] and third.asked == []


def test_a_component_that_fails_on_one_rollout_is_masked_for_its_group(make_controller, start_engine):
    controller = make_controller(start_engine(Engine()), rewards=[Early(failing=(1,)), Whole()])
    (group,) = controller.collect(1)
    assert [scores["early"].valid for scores in group.scores] == [False] * 3
    assert all(scores["whole"].valid for scores in group.scores)
    assert controller.metrics()["rollout/total_failed_scores"] == 3


@pytest.mark.parametrize("settings", [{}, {"max_staleness": 1}])
def test_groups_are_handed_over_before_the_batch_is_complete_and_together_are_the_batch(
    make_controller, start_engine, settings
):
    engine = Holding(lambda number, prompt: prompt.startswith("prompt 1|"))
    controller = make_controller(start_engine(engine), batch=3, group_size=2, **settings)
    progress = []
    parts = controller.stream(1, least=2, progress=progress.append)
    assert [group.id for group in next(parts)] == [0, 2] and not engine.go.is_set()
    threading.Timer(0.5, engine.go.set).start()
    assert [[group.id for group in part] for part in parts] == [[1]]
    controller.mark_consumed(controller.collect(1), 1)
    assert progress, "somebody hears how far the third group is"
    assert sum(map(len, controller.stream(2, least=1))) == 3
