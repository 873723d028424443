"""The batch of one supervised step, in any stage (pretraining, fine-tuning, reward model)."""

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
    """The sequences of one step with the loss weights of their tokens, in host memory. The same on every rank.

    The loss is Σ weights · (−log p) / denominator over the whole step. So it does not depend on how the sequences are
    packed, distributed over ranks or split into micro-batches.
    """

    sequences: SequenceBatch
    weights: Tensor
    """[sum of lengths] fp32: weight of each token as a label; 0 where it is not trained."""
    denominator: int
    """Number of trained tokens (weighting: token), or of sequences with trained tokens (weighting: sequence)."""
    ids: Sequence[str]
    """Origin of each sequence, for finding bad data."""

    @property
    def predictions(self) -> int:
        """Number of trained tokens in the step."""
        return int((self.weights > 0).sum())


class BatchSource(Protocol):
    """Batches as a pure function of a cursor. The cursor is the only data state in a checkpoint."""

    def take(self, cursor: int, count: int) -> tuple[SupervisedBatch, int]:
        """Returns the batch that starts at `cursor`, and the cursor after it. The stage sets the unit of `count`."""
        ...


def weigh(batch: SequenceBatch, trained: Tensor, weighting: Weighting) -> tuple[Tensor, int]:
    """Returns (weights [sum of lengths] fp32, denominator) of a batch.

    `trained` [sum of lengths] bool marks the tokens that are trained.
    With weighting `token`, every trained token of the step has the same weight. With `sequence`, every sequence has the
    same weight, which its trained tokens share equally.
    """
    if weighting == "token":
        return trained.float(), int(trained.sum())
    owner = torch.repeat_interleave(torch.arange(len(batch)), batch.offsets[1:] - batch.offsets[:-1])
    counts = torch.zeros(len(batch)).index_add_(0, owner, trained.float())
    return trained.float() / counts.clamp(min=1.0)[owner], int((counts > 0).sum())
