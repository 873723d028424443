"""Finds the micro-batch that made an update not finite, and names its rollouts. It runs only after such an update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from megatron_lwz.distributed import exchange
from megatron_lwz.training.grpo_batches import Update
from megatron_lwz.training.grpo_objective import GrpoObjective
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import AccumulatingStep

_SHOWN = 8
"""Number of rollouts that a line names."""


def culprit_of(state: TrainState, updates: Sequence[Update], step: AccumulatingStep) -> str:
    """Returns, on every rank alike, the rank, micro-batch and rollouts to blame for the refused `step`. Collective.

    `updates` are the parts that were added to the step. A micro-batch whose own loss or metrics are not finite shows in
    the step's sums. If all are finite, every micro-batch runs forward and backward once more, alone, until a gradient is
    not; this replaces the step's gradients.
    """
    flat = [(update, index) for update in updates for index in range(len(update.micro_batches))]
    faulty = step.not_finite()
    mine = _named(*flat[faulty[0]], "loss or log-probs") if faulty else None
    return exchange.first_said(mine) or exchange.first_said(_bad_gradient(state, updates)) or "no single micro-batch"


def _bad_gradient(state: TrainState, updates: Sequence[Update]) -> str | None:
    found = None
    parallel = state.config.parallel
    for update, first, alone in _pieces(updates, parallel.pipeline if parallel.virtual_pipeline else 1):
        objective = GrpoObjective(state.config.grpo, alone.sequences, alone.old, alone.reference)
        AccumulatingStep(state).add(alone.micro_batches, objective.loss, objective.token_loss, last=False)
        if found is None and not _gradients_are_finite(state):
            found = _named(update, first, "gradient")
    return found


def _pieces(updates: Sequence[Update], size: int) -> Iterator[tuple[Update, int, Update]]:
    """Yields (update, index, update of the `size` micro-batches from that index on)."""
    for update in updates:
        for first in range(0, len(update.micro_batches), size):
            yield update, first, update.part(slice(first, first + size))


def _gradients_are_finite(state: TrainState) -> bool:
    trained = (weight for policy in state.policies for weight in policy.parameters() if weight.requires_grad)
    sums = [weight.main_grad.sum() for weight in trained]
    return bool(torch.isfinite(torch.stack(sums)).all())


def _named(update: Update, index: int, what: str) -> str:
    ids = [int(number) for number in update.micro_batches[index].sequence_ids.unique() if number >= 0]
    names = [update.rollouts[number] if update.rollouts else f"sequence {number}" for number in ids]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    place = f"rank {dist.get_rank()}, micro-batch {index + 1} of {len(update.micro_batches)}"
    return f"{what} of {place}: rollouts {', '.join(names[:_SHOWN])}{more}"
