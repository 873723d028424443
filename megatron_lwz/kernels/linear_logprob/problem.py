"""What every implementation of the op is given besides hidden [N, H] and weight [V / TP, H]."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Problem:
    """N rows, all with a label; hidden is whole on every rank, and its gradient is summed over ranks outside."""

    labels: torch.Tensor
    """[N] int64, relative to this shard's first row; outside [0, valid) the label belongs to another rank."""
    valid: int
    """The shard's rows that are true vocabulary: the first `valid`; 0 on a shard of padding only."""
    scale: float
    """1 / temperature."""
    group: torch.distributed.ProcessGroup | None
    workspace_bytes: int

    def owned(self) -> torch.Tensor:
        """[N] bool: rows whose label lies on this shard."""
        return (self.labels >= 0) & (self.labels < self.valid)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32
