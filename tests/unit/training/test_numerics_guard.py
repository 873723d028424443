"""Which updates of GRPO are refused, when the run ends, and when a step with a refused update may write a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import launch
from megatron_lwz.training.numerics_guard import NumericsGuard
from megatron_lwz.training.step import StepResult, TrainingError
from tests.unit.training.tiny_state import config_of, state_of

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _groups() -> Iterator[None]:
    launch.initialize(config_of())
    yield
    launch.shutdown()


def config(**training: Any) -> Config:
    return validate({"training": {"steps": 9, **training}})


def result(loss: float = 0.1, norm: float = 1.0, **metrics: float) -> StepResult:
    return StepResult(loss, norm, 1e-3, metrics, applied=False)


def test_loss_gradient_and_every_metric_must_be_finite() -> None:
    guard = NumericsGuard(config())
    assert guard.accept(result(entropy=2.0)) and guard.accept(result(loss=-1e30, norm=1e30))
    bad = [result(loss=NAN), result(norm=INF), result(norm=NAN), result(entropy=NAN), result(**{"ratio/max": INF})]
    assert not any(map(guard.accept, bad))


def test_a_norm_far_over_the_median_is_refused_if_asked_for_and_a_resumed_guard_decides_alike() -> None:
    guard = NumericsGuard(config(grad_norm_spike=10, spike_window=3, loss_spike=2.0))
    assert all(guard.accept(result(loss=loss, norm=1.0)) for loss in (0.1, -0.1, 5.0)), "losses have no median here"
    guard = NumericsGuard(config(grad_norm_spike=10, spike_window=3), json.loads(json.dumps(guard.state())))
    assert not guard.accept(result(norm=5e8)) and guard.accept(result(norm=9.0))


def test_the_budget_ends_the_run_at_the_end_of_the_step(caplog: pytest.LogCaptureFixture) -> None:
    guard, saved = NumericsGuard(config(skip_budget=1)), []
    guard.skip(3, result(norm=NAN), "gradient of rank 1, micro-batch 2 of 4: rollouts 5-0")
    assert not guard.spent and "rank 1" in caplog.text and "(1 of 1 " in caplog.text and "--step 3" in caplog.text
    guard.end_step(3, lambda: saved.append(3))
    guard.end_step(4, lambda: saved.append(4))
    guard.skip(5, result(norm=NAN), "gradient of rank 0")
    assert guard.spent and guard.watch(5, METRICS)["skipped"] == 2.0
    with pytest.raises(
        TrainingError, match=r"step 5: .*not finite; gradient of rank 0; skipped \(2 of 1 .*stops at step 5"
    ):
        guard.end_step(5, lambda: saved.append(5))
    assert saved == [5], "a checkpoint in flight is completed first"


METRICS = {"mismatch/difference": NAN, "ratio/max": 1.0, "trained_tokens": 1.0, "rollout/token_staleness": 0.0}


def test_a_run_without_a_single_update_is_an_error() -> None:
    guard = NumericsGuard(config(steps=2, skip_budget=9))
    for step in (1, 2):
        guard.skip(step, result(norm=NAN), "x")
        if step == 1:
            guard.end_step(step, lambda: None)
    with pytest.raises(TrainingError, match="no update was applied: all 2 were skipped"):
        guard.end_step(2, lambda: None)


def test_no_checkpoint_is_written_of_weights_that_are_not_finite() -> None:
    state = state_of(config_of())
    guard = NumericsGuard(config(skip_budget=0))
    assert guard.saves(state, due=True) and not guard.saves(state, due=False)
    guard.skip(1, result(norm=NAN), "x")
    assert guard.saves(state, due=False), "the budget is spent"
    weight = next(state.policies[0].parameters())
    with torch.no_grad():
        weight.view(-1)[0] = INF
    assert not guard.saves(state, due=True)
