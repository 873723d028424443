"""RMSNorm in plain torch, for layers without Transformer Engine."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """y = w · x / sqrt(mean(x²) + eps) over the last dimension, computed in fp32 (Zhang & Sennrich 2019, eq. 4).

    The weight is flagged `sequence_parallel` so that its gradient is summed over the tensor-parallel ranks, each of
    which saw other tokens; without the flag the gradient norm is silently wrong.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        weight = torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        self.weight = torch.nn.Parameter(weight)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] → [..., H] in the dtype of `hidden`."""
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)
