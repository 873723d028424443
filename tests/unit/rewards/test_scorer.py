"""The order in which waiting texts are read: like lengths together, none passed over for ever, a failure stays its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from megatron_lwz.rewards.scorer import Overloaded, ScoringThread
from tests.support.waiting import PATIENCE, wait_for


class Recorder:
    """Stands for the model: notes the lengths of every pack, waits until it may go on, fails on texts of 13 tokens."""

    def __init__(self) -> None:
        self.packs: list[list[int]] = []
        self.go = threading.Event()

    def score(self, texts: Sequence[Sequence[int]]) -> list[float]:
        self.packs.append([len(text) for text in texts])
        self.go.wait(10)
        if any(len(text) == 13 for text in texts):
            raise RuntimeError("out of memory")
        return [float(len(text)) for text in texts]


def texts(*lengths: int) -> list[list[int]]:
    return [[1] * length for length in lengths]


def running(model: Any, **limits: int) -> ScoringThread:
    thread = ScoringThread(model, **({"tokens_per_batch": 100, "most_waiting": 50} | limits))
    thread.start()
    return thread


def test_packs_hold_texts_of_like_length_under_the_cap_oldest_first() -> None:
    model = Recorder()
    thread = running(model)
    try:
        first = thread.submit(texts(5))  # the model is busy with it while the others gather
        wait_for(lambda: model.packs)
        waiting = thread.submit(texts(60, 4, 40, 5, 33, 7, 150, 6))
        model.go.set()
        assert [future.result(PATIENCE) for future in (*first, *waiting)] == [5, 60, 4, 40, 5, 33, 7, 150, 6]
    finally:
        thread.stop()
    assert model.packs == [[5], [60, 40], [4, 5, 7, 6], [33], [150]]
    assert thread.packs == 5


def test_a_failure_costs_its_own_pack_only() -> None:
    model = Recorder()
    model.go.set()
    thread = running(model)
    try:
        bad, good = thread.submit(texts(13, 60))
        with pytest.raises(RuntimeError, match="out of memory"):
            bad.result(PATIENCE)
        assert good.result(PATIENCE) == 60.0
    finally:
        thread.stop()


def test_too_many_waiting_texts_are_refused_and_stopping_ends_what_waits() -> None:
    model = Recorder()
    thread = running(model, most_waiting=3)
    (first,) = thread.submit(texts(3))
    wait_for(lambda: model.packs)
    waiting = thread.submit(texts(3, 3, 3))
    with pytest.raises(Overloaded):
        thread.submit(texts(3))
    waiting[0].cancel()
    model.go.set()
    assert first.result(PATIENCE) == 3.0 and waiting[2].result(PATIENCE) == 3.0
    thread.stop()
    assert model.packs == [[3], [3, 3]]
