"""What every implementation does with a tile of logits, and how the tiles of a row become its log-prob.

A tile is z [n, v]: the unscaled logits x · Wᵀ of n rows and v columns of this rank's vocabulary, from one matrix
product. With y = z / temperature, four numbers per row and shard suffice: m = max y, s = Σ e^(y−m), w = Σ e^(y−m)·(y−m)
and the label's logit. One all-gather of them, combined in rank order, gives log-prob, entropy and lse, bitwise equal on
all ranks. With g, h, k the gradients of logprob, entropy and lse, and b = E_p[y], the gradient of y is p·(k − g − h·(y
− b)) + g·[label].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

STATISTICS = 4
"""Number of rows of the statistics tensor: m, s, w, the label's logit."""


@dataclass(frozen=True)
class RowGradients:
    """Inputs of the gradient of a row's logits besides the logits, each [n] fp32 (fp64 for fp64 logits)."""

    lse: Tensor
    mean: Tensor
    """b = E_p[y]."""
    logprob: Tensor
    """g = dL / d logprob. A row whose three gradients are all 0 gets exactly zero gradient."""
    entropy: Tensor | None
    """h = dL / d entropy; None when it is 0 everywhere."""
    lse_gradient: Tensor | None
    """k = dL / d lse; None when it is 0 everywhere."""


class Epilogue(Protocol):
    """The two passes over a tile z [n, v]. Its rows are contiguous (stride 1), any distance apart.

    `labels` [n] int64 are relative to the tile's first column; outside [0, v) the label lies in another tile or shard.
    `scale` is 1 / temperature.
    """

    def statistics(self, z: Tensor, labels: Tensor, scale: float, running: Tensor) -> None:
        """Merges the tile into `running` [4, n] (m, s, w, label's logit), in place. Leaves z as it is."""
        ...

    def gradient(self, z: Tensor, labels: Tensor, scale: float, rows: RowGradients, dtype: torch.dtype) -> Tensor:
        """Returns dL/dz [n, v] in `dtype` (fp32 or bf16; rows contiguous). May overwrite z."""
        ...


def empty_statistics(count: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the statistics [4, count] of a shard without columns.

    The maximum is the lowest finite number, because −∞ would make NaN of 0 · (m − M).
    """
    running = torch.zeros(STATISTICS, count, dtype=dtype, device=device)
    running[0] = torch.finfo(dtype).min
    return running


def combine(shards: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Converts [TP, 4, n] in rank order to logprob, entropy, lse and mean logit E_p[y], each [n]."""
    m, s, w, chosen = shards.unbind(1)
    highest = m.amax(0)
    offset = m - highest
    factor = offset.exp()
    total = (factor * s).sum(0)
    mean = (factor * (w + s * offset)).sum(0) / total  # relative to `highest`
    log_total = total.log()
    lse = highest + log_total
    return chosen.sum(0) - lse, log_total - mean, lse, highest + mean
