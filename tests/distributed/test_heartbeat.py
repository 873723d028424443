"""A run that hangs says which rank waits where (distributed/heartbeat.py)."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import pytest
import torch.distributed as dist

from megatron_lwz.distributed.heartbeat import Beat, Heartbeat, described
from tests.distributed.checks_heartbeat import STALL_SECONDS
from tests.support.ranks import run_ranks


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    architecture = {
        "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64,
    }  # fmt: skip
    config = {
        "model": {"architecture": architecture},
        "parallel": {"stall_minutes": STALL_SECONDS / 60},
        "run": {"dir": "unused"},
    }
    return run_ranks("tests.distributed.checks_heartbeat:hangs", ranks=2, config=config)


def test_one_rank_says_where_all_are_when_one_is_late(found: list[dict[str, Any]]) -> None:
    said = [line for rank in found for line in rank["late"]]
    assert said
    for line in said:
        assert "has not moved for" in line and "parallel.timeout_minutes" in line
        assert "rank 0 at distributed/exchange.py:" in line and "(largest)" in line
        assert "rank 1 at " in line and "checks_heartbeat.py:" in line


def test_a_rank_that_a_signal_stops_gives_no_sign_of_life(found: list[dict[str, Any]]) -> None:
    assert any("rank 1 no sign of life for" in line and "pid" in line for line in found[0]["stopped"])


def test_nothing_is_said_of_ranks_that_may_wait_or_wait_for_such_a_one_or_that_move(
    found: list[dict[str, Any]],
) -> None:
    for rank in found:
        assert rank["waiting"] == rank["behind"] == rank["moving"] == []


def test_a_collective_that_fails_names_its_line_and_the_place_of_all(found: list[dict[str, Any]]) -> None:
    lost = found[0]["lost"]
    assert lost.startswith("a collective failed at ") and "\n" not in lost
    assert "rank 0 at " in lost and "rank 1 at " in lost
    assert found[0]["other"] is None and "lost" not in found[1]


@pytest.mark.parametrize(
    ("still", "age", "speaks"),
    [(100.0, 1.0, False), (100.0, 50.0, True), (59.0, 1.0, True)],
    ids=["rank 0 says it", "rank 0 gives no sign of life", "rank 0 moves"],
)
def test_the_lowest_rank_that_stands_still_and_lives_says_it(
    still: float, age: float, speaks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = dist.HashStore()
    one = Heartbeat(store, rank=1, ranks=2, stall=60.0)  # a beat every 6 s
    one.stop()
    for rank, beat in enumerate(
        [Beat("a", 1, "here", "", still, time.time() - age), Beat("a", 2, "here", "", 99.0, time.time())]
    ):
        store.set(f"heartbeat/{rank}", json.dumps(asdict(beat)))
    one._report()
    assert ("rank 1 has not moved" in caplog.text) == speaks


def test_ranks_at_one_place_are_named_together() -> None:
    here = Beat("a", 1, "training/step.py:88 (finish)", "", 0.0, 100.0)
    beats = dict.fromkeys((0, 1, 2, 4), here) | {
        3: Beat("b", 9, "training/blocks.py:7 (save)", "", 300.0, 40.0),
        5: Beat("b", 8, "training/rollouts.py:9 (stream)", "rollouts/1/2/0", 300.0, 100.0),
    }
    assert described(beats, 100.0, silent_after=30.0) == (
        "ranks 0-2, 4 at training/step.py:88 (finish); rank 3 no sign of life for 60 s (b, pid 9), last at "
        "training/blocks.py:7 (save); rank 5 waiting for rollouts/1/2/0"
    )
