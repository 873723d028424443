"""A rollout batch, whole or in parts → old and reference log-probs → optimizer updates with the GRPO loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from megatron_lwz.algorithms.grpo import average_metrics, token_weights
from megatron_lwz.config import Config
from megatron_lwz.training.batching import make_micro_batches
from megatron_lwz.training.grpo_objective import GrpoObjective
from megatron_lwz.training.reference import ReferenceWeights, with_weights
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import AccumulatingStep, StepResult, forward_statistics
from megatron_lwz.types import MicroBatch, SequenceBatch


@dataclass(frozen=True)
class Update:
    """One optimizer update, or a part of it: this rank's micro-batches and their fixed log-probs, each [T] fp32.

    `denominator` is the part of the update's denominator from these sequences. `old` is None when the policy has not
    changed since the rollouts' weights were exported: then old = policy.
    """

    micro_batches: Sequence[MicroBatch]
    denominator: int
    sequences: int
    old: Sequence[torch.Tensor] | None = None
    reference: Sequence[torch.Tensor] | None = None


def prepare_updates(
    state: TrainState, batch: SequenceBatch, config: Config, reference: ReferenceWeights | None
) -> list[Update]:
    """Splits the batch into `training.updates_per_batch` updates and computes the log-probs that stay fixed.

    If the batch comes in parts, there is one update, and each part of the batch is a part of it.
    """
    count = config.training.updates_per_batch
    updates = [_plan(part, config) for part in split(batch, count)]
    if count > 1:
        updates = [replace(update, old=_logprobs(state, update)) for update in updates]
    if reference is not None:
        with with_weights(state, reference):
            updates = [replace(update, reference=_logprobs(state, update)) for update in updates]
    return updates


class PolicyUpdates:
    """The optimizer updates of one rollout batch: `add` each part of the batch, then `finish`."""

    def __init__(self, state: TrainState, config: Config) -> None:
        self._state = state
        self._config = config
        self._step: AccumulatingStep | None = None
        self._denominator = 0
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
            self._step.add(update.micro_batches, objective.loss, objective.token_loss, last=last)
            self._denominator += update.denominator

    def finish(self) -> list[dict[str, float]]:
        """Returns for each update `loss`, `grad_norm`, `lr` and the loss's metrics as means per token."""
        self._close()
        return self._done

    def _close(self) -> None:
        if self._step is not None:
            self._done.append(step_metrics(self._step.finish(self._denominator)))
        self._step, self._denominator = None, 0


def step_metrics(result: StepResult) -> dict[str, float]:
    """Returns a StepResult as one flat row of metrics."""
    metrics = average_metrics(result.metrics)
    tokens = metrics.pop("tokens")
    return {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr, "trained_tokens": tokens, **metrics}


def mean_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of every metric over the updates of a step."""
    return {name: sum(metrics[name] for metrics in updates) / len(updates) for name in updates[0]}


def split(batch: SequenceBatch, count: int) -> list[SequenceBatch]:
    """Splits into `count` batches of equal size, every count-th sequence each, so that groups are spread."""
    if count == 1:
        return [batch]
    return [select(batch, range(first, len(batch), count)) for first in range(count)]


def select(batch: SequenceBatch, indices: Sequence[int]) -> SequenceBatch:
    """Returns the sequences `indices` of a batch, in that order."""
    spans = [slice(int(batch.offsets[i]), int(batch.offsets[i + 1])) for i in indices]
    lengths = torch.tensor([span.stop - span.start for span in spans])
    chosen = torch.tensor(list(indices), dtype=torch.int64)
    return SequenceBatch(
        tokens=torch.cat([batch.tokens[span] for span in spans]),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=batch.prompt_lengths[chosen],
        behaviour_logprobs=torch.cat([batch.behaviour_logprobs[span] for span in spans]),
        advantages=batch.advantages[chosen],
        weights=batch.weights[chosen],
    )


def _plan(batch: SequenceBatch, config: Config) -> Update:
    """Plans micro-batches without sequences of weight 0 (masked, or without variance), which only cost time."""
    kept = (batch.weights > 0).nonzero().squeeze(1).tolist() or [0]
    if len(kept) < len(batch):
        batch = select(batch, kept)
    weights, denominator = token_weights(batch, config.grpo)
    return Update(make_micro_batches(batch, config, weights), denominator, sequences=len(batch))


def _logprobs(state: TrainState, update: Update) -> list[torch.Tensor] | None:
    statistics = forward_statistics(state, update.micro_batches)
    return None if statistics is None else [values[0].detach() for values in statistics]
