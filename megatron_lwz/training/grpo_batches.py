"""A rollout batch, whole or in parts → the micro-batches of its optimizer updates, with old and reference log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from megatron_lwz.algorithms.grpo import token_weights
from megatron_lwz.config import Config
from megatron_lwz.distributed import groups, platform
from megatron_lwz.training.batching import make_micro_batches
from megatron_lwz.training.reference import Frozen
from megatron_lwz.training.served_teacher import ServedTeacher, of_labels
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import forward_chunks
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
    rollouts: Sequence[str] = ()
    """Ids of the sequences; empty if they have none."""

    def part(self, span: slice) -> Update:
        """Returns the micro-batches `span` as an update of their own, with the same denominator."""
        return replace(
            self,
            micro_batches=self.micro_batches[span],
            old=self.old and self.old[span],
            reference=self.reference and self.reference[span],
        )


def prepare_updates(
    state: TrainState,
    batch: SequenceBatch,
    config: Config,
    reference: Frozen | None,
    rollouts: Sequence[str] = (),
) -> list[Update]:
    """Splits the batch into `training.updates_per_batch` updates and computes the log-probs that stay fixed.

    If the batch comes in parts, there is one update, and each part of the batch is a part of it. `rollouts`: ids of the
    sequences.
    """
    count = config.training.updates_per_batch
    kept = [_kept(part, rollouts[first::count]) for first, part in enumerate(split(batch, count))]
    updates = [_plan(part, config, names) for part, names in kept]
    if count > 1:
        updates = [replace(update, old=_logprobs(state.chunks, update)) for update in updates]
    if isinstance(reference, ServedTeacher):
        asked = [reference.logprobs(part) for part, _ in kept]
        return [
            replace(update, reference=_of_server(found, update)) for found, update in zip(asked, updates, strict=True)
        ]
    if reference is not None:
        with reference.at_work(state) as frozen:
            updates = [replace(update, reference=_logprobs(frozen, update)) for update in updates]
    return updates


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


def _kept(batch: SequenceBatch, rollouts: Sequence[str]) -> tuple[SequenceBatch, Sequence[str]]:
    """Returns the batch and its ids without sequences of weight 0 (masked, or without variance), which only cost time."""
    kept = (batch.weights > 0).nonzero().squeeze(1).tolist() or [0]
    if len(kept) == len(batch):
        return batch, rollouts
    return select(batch, kept), [rollouts[place] for place in kept] if rollouts else ()


def _plan(batch: SequenceBatch, config: Config, rollouts: Sequence[str]) -> Update:
    weights, denominator = token_weights(batch, config.grpo)
    micro_batches = make_micro_batches(batch, config, weights)
    return Update(micro_batches, denominator, sequences=len(batch), rollouts=rollouts)


def _of_server(logprobs: torch.Tensor, update: Update) -> list[torch.Tensor] | None:
    """Returns the log-probs of the labels of every micro-batch, on the last pipeline stage alone."""
    if not groups.is_last_stage():
        return None
    return [of_labels(logprobs, micro_batch).to(platform.device()) for micro_batch in update.micro_batches]


def _logprobs(chunks: Sequence[torch.nn.Module], update: Update) -> list[torch.Tensor] | None:
    statistics = forward_chunks(chunks, update.micro_batches)
    return None if statistics is None else [values[0].detach() for values in statistics]
