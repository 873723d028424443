"""What one supervised step trains on, whatever stage it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from megatron_lwz.types import SequenceBatch

Weighting = Literal["token", "sequence"]


@dataclass(frozen=True)
class SupervisedBatch:
    """The sequences of one step with the loss weights of their tokens, the same on every rank (host memory).

    The step's loss is Σ weights · (−log p) / denominator over the whole step, so that it does not depend on how the
    sequences are packed, split over ranks or cut into micro-batches.
    """

    sequences: SequenceBatch
    weights: Tensor
    """[sum of lengths] fp32: weight of each token as a label; 0 where it is not trained."""
    denominator: int
    """Trained tokens (weighting: token) or sequences that hold any (weighting: sequence)."""
    ids: Sequence[str]
    """Where each sequence comes from, for a person who looks for what went wrong."""

    @property
    def predictions(self) -> int:
        """Trained tokens of the step."""
        return int((self.weights > 0).sum())


class BatchSource(Protocol):
    """Batches as a pure function of a cursor, which is all that a checkpoint keeps of the data."""

    def take(self, cursor: int, count: int) -> tuple[SupervisedBatch, int]:
        """The batch that starts at `cursor`, of size `count` (the stage says of what), and the cursor after it."""
        ...


def weigh(batch: SequenceBatch, trained: Tensor, weighting: Weighting) -> tuple[Tensor, int]:
    """(weights [sum of lengths] fp32, denominator) of a batch whose `trained` [sum of lengths] bool tokens are learnt.

    token: every trained token of the step counts the same. sequence: every sequence does, its tokens sharing its weight.
    """
    if weighting == "token":
        return trained.float(), int(trained.sum())
    owner = torch.repeat_interleave(torch.arange(len(batch)), batch.offsets[1:] - batch.offsets[:-1])
    counts = torch.zeros(len(batch)).index_add_(0, owner, trained.float())
    return trained.float() / counts.clamp(min=1.0)[owner], int((counts > 0).sum())
