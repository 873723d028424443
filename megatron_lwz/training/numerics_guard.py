"""The numbers of a GRPO run: updates that are not finite are refused within a budget, suspicious ones are reported.

The norm of the gradient covers the weights: a weight that is not finite and takes part makes every log-prob, loss and
gradient that it touches not finite, so the step after it is refused. A run that ends here looks at all weights once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from megatron_lwz.config import Config
from megatron_lwz.distributed import exchange, groups
from megatron_lwz.models.hf.tensors import is_finite
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.mismatch_alarm import MismatchAlarm
from megatron_lwz.training.spikes import SpikeGuard
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import StepResult, TrainingError

log = logging.getLogger(__name__)


class NumericsGuard:
    """Decides which optimizer updates of a GRPO run are applied, and watches its log-probs. All ranks decide alike.

    `training.skip_budget` and `training.grad_norm_spike` apply as in the supervised stages. `training.loss_spike` does
    not: a policy loss is near 0, of either sign. With several updates per batch each one counts.
    """

    def __init__(self, config: Config, state: dict[str, Any] | None = None) -> None:
        """`state`: an earlier result of `state()`, so that a resumed run decides in the same way."""
        section = config.training.model_copy(update={"loss_spike": None})
        state = state or {}
        self._spikes = SpikeGuard(section, RunPaths(config.run.dir).skipped, state.get("updates"))
        self._alarm = MismatchAlarm(config.grpo.mismatch_alarm, state.get("mismatch"))
        self._budget = section.skip_budget
        self._steps = section.steps
        self._updates = section.steps * section.updates_per_batch
        self._fault = ""
        """What was wrong with the last refused update of the step that goes on; empty if none was."""

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint (JSON)."""
        return {"updates": self._spikes.state(), "mismatch": self._alarm.state()}

    def watch(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics `skipped`, updates skipped so far, and `mismatch/alarm`. May log a warning."""
        return {"skipped": float(self._spikes.skipped), **self._alarm.watch(step, metrics)}

    @property
    def spent(self) -> bool:
        """Whether the step that goes on has spent the budget: the run ends with it."""
        return bool(self._fault) and self._spikes.skipped > self._budget

    def accept(self, result: StepResult) -> bool:
        """Whether the update may be applied. A metric that is not finite (entropy, ratio …) counts as such a loss."""
        return self._spikes.accept(_worst(result), result.grad_norm)

    def skip(self, step: int, result: StepResult, culprit: str) -> None:
        """Counts a refused update of `step`. `culprit` says whose it was."""
        self._spikes.skipped += 1
        reason = self._spikes.fault(_worst(result), result.grad_norm)
        what = f"step {step}: loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}: {reason}; {culprit}"
        self._fault = f"{what}; skipped ({self._spikes.skipped} of {self._budget} in training.skip_budget)"
        if groups.is_rank_zero():
            log.warning("%s: no weight has changed; `lwz replay RUN --step %d` shows its rollouts", self._fault, step)

    def saves(self, state: TrainState, *, due: bool) -> bool:
        """Whether the step ends with a checkpoint: if it is `due`, or the budget is spent. Collective.

        If weights are not finite after a refused update, there is none, so that the last good one stays.
        """
        if not self._fault:
            return due
        return (due or self.spent) and weights_are_finite(state)

    def forget(self) -> None:
        """Forgets the step's fault: another step begins."""
        self._fault = ""

    def end_step(self, step: int, saved: Callable[[], None]) -> None:
        """Forgets the step's fault. Raises TrainingError if it has spent the budget, or if no update of the run was applied.

        `saved` is called before: it returns when a checkpoint in flight is complete.
        """
        if self.spent:
            saved()
            advice = (
                f"the run stops at step {step}: look at its rollouts with `lwz replay`, lower optimizer.lr, or raise "
                "the budget; the same command then goes on from the newest checkpoint"
            )
            raise TrainingError(f"{self._fault}; {advice}")
        self.forget()
        if step == self._steps and self._spikes.skipped >= self._updates:
            raise TrainingError(
                f"no update was applied: all {self._updates} were skipped; the weights are the first ones"
            )


def weights_are_finite(state: TrainState) -> bool:
    """Returns whether all weights of all ranks are finite. Collective; reads every weight once."""
    sound = all(is_finite(weight) for policy in state.policies for weight in policy.parameters())
    everywhere = exchange.largest(float(not sound)) == 0.0
    if not everywhere and groups.is_rank_zero():
        log.warning("weights are not finite: no checkpoint is written, the last one stays")
    return everywhere


def _worst(result: StepResult) -> float:
    return result.loss if all(map(math.isfinite, result.metrics.values())) else math.nan
