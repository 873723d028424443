"""Detection of steps to skip: a loss or gradient norm that is not finite, or far above the recent median."""

from __future__ import annotations

import logging
import math
import statistics
from pathlib import Path
from typing import Any

import safetensors.torch

from megatron_lwz.config.sections import TrainingSection
from megatron_lwz.data.supervised import SupervisedBatch
from megatron_lwz.distributed import groups
from megatron_lwz.metrics import write_json
from megatron_lwz.run_paths import step_name
from megatron_lwz.training.step import StepResult, TrainingError
from megatron_lwz.writing import replacing

log = logging.getLogger(__name__)


class SpikeGuard:
    """Compares each step with the accepted ones before it, and stops the run when its budget of skipped steps is spent.

    Its state consists of plain numbers and is saved in the checkpoint, so that a resumed run decides in the same way.
    """

    def __init__(self, section: TrainingSection, folder: Path, state: dict[str, Any] | None = None) -> None:
        """`folder` receives the batches of skipped steps; `state` is an earlier result of `state()`."""
        self._section = section
        self._folder = folder
        state = state or {}
        self.skipped: int = state.get("skipped", 0)
        """Number of steps that the run has skipped so far."""
        self._losses: list[float] = state.get("losses", [])
        self._norms: list[float] = state.get("grad_norms", [])

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint (JSON)."""
        return {"skipped": self.skipped, "losses": list(self._losses), "grad_norms": list(self._norms)}

    def judge(self, result: StepResult) -> bool:
        """Whether the step may be taken."""
        return self.accept(result.loss, result.grad_norm)

    def accept(self, loss: float, grad_norm: float) -> bool:
        """Whether the step may be taken. An accepted step enters the median."""
        if self.fault(loss, grad_norm):
            return False
        for values, value in ((self._losses, loss), (self._norms, grad_norm)):
            values.append(value)
            del values[: -self._section.spike_window]
        return True

    def fault(self, loss: float, grad_norm: float) -> str:
        """Returns what is wrong with a step, or an empty string."""
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            return "not finite"
        for name, value, before, factor in (
            ("loss", loss, self._losses, self._section.loss_spike),
            ("gradient norm", grad_norm, self._norms, self._section.grad_norm_spike),
        ):
            if factor is None or len(before) < self._section.spike_window:
                continue
            median = statistics.median(before)
            if value > factor * median:
                return f"{name} over {factor:g} × the median {median:.4g} of the last {len(before)} steps"
        return ""

    def check_progress(self, steps: int) -> None:
        """Raises TrainingError if the run has skipped all of its `steps`: its weights are those it began with."""
        if steps and self.skipped >= steps:
            advice = f"look at the batches and losses in {self._folder}, and at the weights it began with"
            raise TrainingError(f"no step was taken: all {steps} were skipped, so nothing is exported; {advice}")

    def skip(self, step: int, result: StepResult, batch: SupervisedBatch, cursor: int) -> None:
        """Counts a skipped step and writes its batch to the folder. Raises TrainingError when the budget is spent."""
        self.skipped += 1
        reason = self.fault(result.loss, result.grad_norm)
        stem = self._folder / step_name(step)
        if groups.is_rank_zero():
            self._folder.mkdir(parents=True, exist_ok=True)
            record = {"step": step, "reason": reason, "loss": str(result.loss), "grad_norm": str(result.grad_norm)}
            write_json(stem.with_suffix(".json"), record | {"cursor": cursor, "ids": list(batch.ids)})
            tensors = {"tokens": batch.sequences.tokens, "offsets": batch.sequences.offsets, "weights": batch.weights}
            with replacing(stem.with_suffix(".safetensors")) as file:
                file.write(safetensors.torch.save(tensors))
        what = f"step {step}: loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}: {reason}"
        if self.skipped > self._section.skip_budget:
            raise TrainingError(
                f"{what}; it is the run's skipped step number {self.skipped}, training.skip_budget is "
                f"{self._section.skip_budget}: look at its batch in {stem}.json, or lower optimizer.lr, then resume"
            )
        if groups.is_rank_zero():
            log.warning(
                "%s; skipped (%d of %d), its batch is in %s.json", what, self.skipped, self._section.skip_budget, stem
            )
