"""Lengths of real rollouts over HTTP, engines ahead and over-sampling: no false gap, and a true one where requests are lost."""

from __future__ import annotations

import numpy as np

from megatron_lwz.config.lengths import LengthsSection
from megatron_lwz.rollout.length_book import LengthBook
from tests.support.synthetic_engine import Engine

BATCH, STALENESS, STEPS = 8, 2, 9


def long_tail(seed: int) -> int:
    """Log-normal, at most 180 tokens."""
    return int(min(180, np.random.default_rng(seed).lognormal(3.3, 0.8))) + 1


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.endswith("length_book")]


def rows_of(controller) -> list[dict[str, float]]:
    book, rows = LengthBook(LengthsSection(), STALENESS), []
    for step in range(1, STEPS + 1):
        controller.mark_consumed(controller.collect(step), step)
        controller.settle()
        rows.append(book.measure(step, controller._journal.lengths))
    return rows


def test_running_ahead_and_over_sampling_open_no_gap(make_controller, start_engine, caplog):
    engine = Engine(length=long_tail, delta=8, pause=0.002)
    rows = rows_of(make_controller(
        start_engine(engine), batch=BATCH, group_size=2, max_staleness=STALENESS, over_sampling=1.0, concurrency=64
    ))  # fmt: skip
    assert [row.get("length/version") for row in rows] == [None] * STALENESS + list(range(STEPS - STALENESS))
    for row in rows[STALENESS:]:
        assert row["length/sampled/rollouts"] == row["length/trained/rollouts"] > 0
        assert row["length/gap"] == row["length/gap_window"] == 0
    assert max(row["length/waiting/age"] for row in rows) <= STALENESS - 1
    assert sum(row["length/waiting/rollouts"] for row in rows) > 0
    assert not warnings(caplog)


def test_requests_that_are_lost_when_long_are_warned_of(make_controller, start_engine, caplog):
    engine = Engine(length=long_tail, delta=8, broken=lambda number: 56)
    rows = rows_of(make_controller(
        start_engine(engine), batch=BATCH, group_size=2, max_staleness=STALENESS, concurrency=64, retries=0,
        failed_groups=10_000, pool={"probe_interval": 0.02},
    ))  # fmt: skip
    assert [row.get("length/version") for row in rows] == [None] * STALENESS + list(range(STEPS - STALENESS))
    parted = [row for row in rows if row.get("length/parted")]
    assert parted and min(row["length/gap_mean"] for row in parted) < 0
    assert max(row.get("length/abandoned", 0) for row in rows) > 0
    assert max(row.get("length/excluded/failed", 0) for row in rows) > 0.1
    assert "'failed'" in warnings(caplog)[0] and "(-" in warnings(caplog)[0]
