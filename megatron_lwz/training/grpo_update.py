"""The optimizer updates of a rollout batch, which may come in parts, with the GRPO loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_lwz.algorithms.grpo import average_metrics
from megatron_lwz.config import Config
from megatron_lwz.training.grpo_batches import Update
from megatron_lwz.training.grpo_objective import GrpoObjective
from megatron_lwz.training.numerics_guard import NumericsGuard
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import AccumulatingStep, StepResult
from megatron_lwz.training.token_values import TokenRecorder
from megatron_lwz.training.update_fault import culprit_of


class PolicyUpdates:
    """The optimizer updates of one rollout batch: `add` each part of the batch, then `finish`.

    `guard` may refuse an update: it then changes neither weights nor optimizer. Without one, a loss or gradient that is not
    finite raises TrainingError.
    """

    def __init__(
        self,
        state: TrainState,
        config: Config,
        guard: NumericsGuard | None = None,
        recorder: TokenRecorder | None = None,
    ) -> None:
        """`recorder` takes the values of single tokens, and writes them when the batch is finished."""
        self._state = state
        self._config = config
        self._guard = guard
        self._recorder = recorder
        self._step: AccumulatingStep | None = None
        self._parts: list[Update] = []
        self._done: list[dict[str, float]] = []

    def add(self, updates: Sequence[Update], *, last: bool) -> None:
        """Runs forward and backward passes of all updates. The last update's optimizer step waits for further parts.

        `last`: there are no further parts.
        """
        for place, update in enumerate(updates):
            if place:
                self._close()
            if self._step is None:
                self._step = AccumulatingStep(self._state)
            objective = GrpoObjective(self._config.grpo, update.sequences, update.old, update.reference)
            loss = objective.loss if self._recorder is None else self._recorder.watch(objective.loss, update)
            self._step.add(update.micro_batches, loss, objective.token_loss, last=last)
            self._parts.append(update)

    def finish(self) -> list[dict[str, float]]:
        """Returns for each update `loss`, `grad_norm`, `lr` and the loss's metrics as means per token."""
        self._close()
        if self._recorder is not None:
            self._recorder.write()
        return self._done

    def _close(self) -> None:
        if self._step is not None:
            denominator = sum(part.denominator for part in self._parts)
            result = self._step.finish(denominator, self._guard.accept if self._guard else None)
            if self._guard is not None and not result.applied:
                self._guard.skip(self._state.step + 1, result, culprit_of(self._state, self._parts, self._step))
            self._done.append(step_metrics(result))
        self._step, self._parts = None, []


def step_metrics(result: StepResult) -> dict[str, float]:
    """Returns a StepResult as one flat row of metrics."""
    metrics = average_metrics(result.metrics)
    tokens = metrics.pop("tokens")
    return {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr, "trained_tokens": tokens, **metrics}


def mean_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of every metric over the updates of a step."""
    return {name: sum(metrics[name] for metrics in updates) / len(updates) for name in updates[0]}
