"""Products of few rows with a weight on a CPU, as in decoding, in C++ (csrc/cpu/thin_product.cpp).

Such a product costs at least one read of the weight. Torch's library takes two to five times as long from 2 to 32 rows:
it copies the weight into another order first. This kernel reads it where it lies, once, so the engine needs no second
copy of the weights. Sums are fp32, also of bf16 weights, and do not depend on the number of threads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from megatron_lwz.kernels import _cpu
except ImportError:  # not built: torch does the work
    _cpu = None  # type: ignore[assignment]

MOST_ROWS = 48
"""From here on torch's library is as fast."""


def serves(rows: int, weight: Tensor) -> bool:
    """Returns whether the kernel is the faster way to multiply `rows` rows with this weight."""
    return (
        _cpu is not None
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.stride(-1) == 1
        and 0 < rows <= MOST_ROWS
        and _cpu.instructions() == "avx2"
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x [..., K] · weightᵀ [N, K] (+ bias [N]) → [..., N] in the dtype of x, without gradients."""
    rows = x.reshape(-1, x.shape[-1])
    if not serves(len(rows), weight):
        return F.linear(x, weight, bias)
    rows = rows.to(torch.float32).contiguous()
    result = torch.empty(len(rows), len(weight))
    _cpu.thin_product(rows, weight, result, torch.get_num_threads())
    if bias is not None:
        result += bias
    return result.to(x.dtype).view(*x.shape[:-1], len(weight))
