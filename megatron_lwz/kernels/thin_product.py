"""Products of few rows with a weight on a CPU, as in decoding, in C++ (csrc/cpu/thin_product.cpp).

Such a product costs at least one read of the weight. Torch's library copies the weight into another order first, and takes
up to four times as long (docs/benchmarks/kernels_cpu.md). This kernel reads the weight where it lies, once, so the engine
needs no second copy of it. Sums are fp32, also of bf16 weights, in the order of the inputs, so a row's bits depend neither
on the other rows nor on the number of threads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lwz.processor import has_fast_bf16

try:
    from megatron_lwz.kernels import _cpu
except ImportError:  # not built: torch does the work
    _cpu = None  # type: ignore[assignment]

MOST_ROWS = 128
"""Up to here the kernel was measured to be the faster way. Not for bf16 on a CPU that multiplies it itself."""


def serves(rows: int, weight: Tensor) -> bool:
    """Returns whether the kernel is the faster way to multiply `rows` rows with this weight."""
    return (
        _cpu is not None
        and weight.device.type == "cpu"
        and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and not has_fast_bf16()))
        and weight.stride(-1) == 1
        and 0 < rows <= MOST_ROWS
        and _cpu.instructions() != "portable"
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x [..., K] · weightᵀ [N, K] (+ bias [N]) → [..., N] in the dtype of x, without gradients."""
    if not serves(x.numel() // x.shape[-1], weight):
        return F.linear(x, weight, bias)
    return multiply(x, weight, bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes the same with the kernel, which must serve this number of rows and this weight."""
    result = torch.empty(*x.shape[:-1], weight.shape[0])
    _cpu.thin_product(x.float().contiguous(), weight, result, torch.get_num_threads())
    if bias is not None:
        result += bias
    return result.to(x.dtype)
