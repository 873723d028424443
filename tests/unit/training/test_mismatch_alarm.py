"""When a run is told that its engines' log-probs do not fit the trainer's."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

import pytest

from megatron_lwz.training.mismatch_alarm import MismatchAlarm

REAL = [
    1.53e-6,
    1.47e-6,
    1.18e-6,
    1.27e-6,
    1.08e-6,
    1.72e-6,
    1.17e-6,
    1.59e-6,
    9.89e-7,
    1.38e-6,
    1.50e-6,
    1.69e-6,
    1.77e-6,
]
"""Of a real policy of 0.5B in fp32 on a CPU (docs/benchmarks/real_policy_cpu.md)."""
KEPT_OUTPUT_LAYER = [5.31e-5, 5.46e-4]
"""Of a vLLM that kept its old output layer after the first weight sync."""
BF16 = [0.009, 0.012, 0.011, 0.015, 0.013, 0.02, 0.031]


def row(value: float, *, staleness: float = 0.0, tokens: float = 100.0, ratio: float = 1.0) -> dict[str, float]:
    return {
        "mismatch/difference": value, "rollout/token_staleness": staleness, "trained_tokens": tokens, "ratio/max": ratio,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _rank_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_lwz.distributed.groups.is_rank_zero", lambda: True)


def alarms(rows: Sequence[dict[str, float]], bound: float | None = 0.1) -> list[float]:
    alarm = MismatchAlarm(bound)
    return [alarm.watch(step, values).get("mismatch/alarm", -1) for step, values in enumerate(rows, start=1)]


@pytest.mark.parametrize("values", [REAL, BF16, [0.0, 0.0, 2e-6, 9e-5], [1e-7, 1e-4, 5e-5]])
def test_runs_that_are_well_give_no_alarm(values: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert set(alarms([row(value) for value in values])) == {0.0} and not caplog.records


def test_an_engine_that_kept_old_weights_is_seen_in_its_first_step(caplog: pytest.LogCaptureFixture) -> None:
    assert alarms([row(value) for value in KEPT_OUTPUT_LAYER]) == [0.0, 1.0]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "\n" not in record.getMessage()
    assert "step 2" in record.getMessage() and "5.3e-05 at most" in record.getMessage()


def test_an_engine_that_makes_log_probs_up_is_seen_at_once_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    assert alarms([row(2.1), row(2.2), row(0.01), row(2.0)]) == [1.0, 1.0, 0.0, 1.0]
    assert [text.split(":")[0] for text in caplog.messages] == ["step 1", "step 4"]
    assert "grpo.mismatch_alarm = 0.1" in caplog.messages[0]


def test_older_tokens_may_differ_more() -> None:
    """The values are of an example that runs two steps ahead with a high learning rate."""
    stale = [row(0.0326, staleness=1), row(0.0888, staleness=1), row(0.275, staleness=2)]
    assert alarms([row(1.5e-6), *stale]) == [0.0] * 4
    assert alarms([row(1.5e-6), *stale, row(1.01, staleness=2)])[-1] == 1.0


def test_steps_without_tokens_or_with_a_refused_update_are_left_out() -> None:
    nothing = [row(0.0, tokens=0.0), row(float("nan"))]
    assert alarms([row(1e-6), *nothing, row(9e-5), row(6e-4)]) == [0.0] * 4 + [1.0]
    assert alarms([row(float("nan"), ratio=float("nan"))]) == [0.0]


def test_a_policy_that_runs_away_within_a_batch_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    assert alarms([row(0.01, ratio=99.0), row(0.01, ratio=4.85e8)]) == [0.0, 1.0]
    assert "4.85e+08 times" in caplog.text


def test_it_can_be_switched_off_and_a_resumed_run_compares_with_the_same_steps() -> None:
    assert alarms([row(9.0)], bound=None) == [-1]
    first = MismatchAlarm(0.1)
    for step, value in enumerate(REAL, start=1):
        first.watch(step, row(value))
    second = MismatchAlarm(0.1, json.loads(json.dumps(first.state())))
    assert len(first.state()["first"]) == 5
    assert second.watch(20, row(6e-4)) == {"mismatch/alarm": 1.0}
