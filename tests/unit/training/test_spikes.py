"""Which steps are refused, what is written about them, and when the run ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_lwz.config.sections import TrainingSection
from megatron_lwz.data.examples import supervised_batch
from megatron_lwz.training.spikes import SpikeGuard
from megatron_lwz.training.step import StepResult, TrainingError

BATCH = supervised_batch([("a:1", torch.arange(4, dtype=torch.int32), torch.arange(4) > 1)], "token")


def guard(folder: Path, state: dict | None = None, **section: float) -> SpikeGuard:
    return SpikeGuard(TrainingSection(spike_window=3, **section), folder, state)


def refused(loss: float, grad_norm: float) -> StepResult:
    return StepResult(loss, grad_norm, 0.1, {}, applied=False)


def test_only_what_is_not_finite_is_refused_by_default(tmp_path: Path) -> None:
    judge = guard(tmp_path)
    assert [judge.accept(loss, 1.0) for loss in (1.0, 1.0, 1.0, 1e6, float("nan"), float("inf"))] == [True] * 4 + [
        False
    ] * 2
    assert not judge.accept(1.0, float("nan"))


def test_a_spike_is_far_over_the_median_of_a_full_window(tmp_path: Path) -> None:
    judge = guard(tmp_path, loss_spike=2.0, grad_norm_spike=10.0)
    assert judge.accept(100.0, 1.0), "the window is not full yet"
    assert judge.accept(2.0, 1.0) and judge.accept(1.0, 1.0)
    assert judge.accept(4.0, 10.0) and not judge.accept(4.1, 1.0) and not judge.accept(1.0, 10.1)
    assert judge.fault(4.1, 1.0) == "loss over 2 × the median 2 of the last 3 steps"
    assert judge.state() == {"skipped": 0, "losses": [2.0, 1.0, 4.0], "grad_norms": [1.0, 1.0, 10.0]}


def test_a_resumed_guard_judges_alike(tmp_path: Path) -> None:
    first = guard(tmp_path, loss_spike=2.0)
    for loss in (1.0, 1.5, 2.0):
        first.accept(loss, 1.0)
    second = guard(tmp_path, json.loads(json.dumps(first.state())), loss_spike=2.0)
    assert [second.accept(loss, 1.0) for loss in (3.1, 2.9)] == [False, True]
    assert len(first.state()["losses"]) == 3


def test_a_skipped_step_leaves_its_batch_and_the_budget_ends_the_run(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    judge = guard(tmp_path / "skipped", skip_budget=1)
    judge.skip(7, refused(float("nan"), 3.0), BATCH, 42)
    record = json.loads((tmp_path / "skipped/step_00000007.json").read_text())
    assert record == {
        "step": 7, "reason": "not finite", "loss": "nan", "grad_norm": "3.0", "cursor": 42, "ids": ["a:1"],
    }  # fmt: skip
    assert load_file(tmp_path / "skipped/step_00000007.safetensors")["tokens"].tolist() == [0, 1, 2, 3]
    with pytest.raises(TrainingError, match=r"step 9: loss nan.*number 2, training\.skip_budget is 1.*step_00000009"):
        judge.skip(9, refused(float("nan"), 3.0), BATCH, 50)
    assert (tmp_path / "skipped/step_00000009.json").exists()


def test_a_run_that_took_no_step_is_an_error(tmp_path: Path) -> None:
    judge = guard(tmp_path)
    judge.check_progress(0)
    for step in (1, 2):
        judge.skip(step, refused(float("nan"), 1.0), BATCH, step)
    judge.check_progress(3)
    with pytest.raises(TrainingError, match="no step was taken: all 2 were skipped, so nothing is exported"):
        judge.check_progress(2)
