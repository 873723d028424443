"""RMSNorm for layers without Transformer Engine."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_lwz.kernels.layers import PLAIN, LayerOps


class RMSNorm(torch.nn.Module):
    """y = w · x / sqrt(mean(x²) + eps) over the last dimension, computed in fp32 (Zhang & Sennrich 2019, eq. 4).

    The weight is flagged `sequence_parallel` so that its gradient is summed over the tensor-parallel ranks, because
    each of them sees different tokens. Without the flag the gradient norm would be wrong without an error.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, *, ops: LayerOps = PLAIN, **_: Any
    ) -> None:
        super().__init__()
        self.eps = eps
        self.ops = ops
        weight = torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        self.weight = torch.nn.Parameter(weight)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] → [..., H] in the dtype of `hidden`."""
        return self.ops.rms_norm(hidden, self.weight, self.eps)
