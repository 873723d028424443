"""The inputs of every pass of the op besides hidden and weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lwz.types import IGNORED_LABEL

NO_LABEL = -1
"""Label of a padding row, outside every shard."""


@dataclass(frozen=True)
class Problem:
    """One call of the op: which rows have a label, and this rank's part of the vocabulary."""

    labels: Tensor
    """[T + 1] int64, relative to this shard's first row; outside [0, valid) the label belongs to another rank. The last
    one is that of padding rows."""
    selected: Tensor
    """[N] int64: the rows that have a label, in increasing order."""
    valid: int
    """Number of the shard's rows that are true vocabulary (its first rows); 0 on a shard of padding only."""
    scale: float
    """1 / temperature."""
    group: torch.distributed.ProcessGroup | None
    sequence_parallel: bool

    @property
    def tokens(self) -> int:
        """T, which is also the number of a padding row."""
        return len(self.labels) - 1


def make_problem(
    labels: Tensor,
    *,
    shard_rows: int,
    temperature: float,
    vocab_start: int,
    vocab_size: int,
    tp_group: torch.distributed.ProcessGroup | None,
    sequence_parallel: bool,
) -> Problem:
    """Returns the problem of labels [T] over a shard of `shard_rows` rows that begins at `vocab_start`."""
    return Problem(
        labels=torch.cat([labels - vocab_start, labels.new_full((1,), NO_LABEL)]),
        selected=(labels != IGNORED_LABEL).nonzero().squeeze(1),
        valid=max(0, min(shard_rows, vocab_size - vocab_start)),
        scale=1.0 / temperature,
        group=tp_group,
        sequence_parallel=sequence_parallel and tp_group is not None,
    )


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns fp32, or fp64 for fp64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32
