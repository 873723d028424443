"""The op's matrix products with fp32 (fp64) sums, from the library that is fastest on the device.

A GPU multiplies bf16 by bf16 with an fp32 result. On a CPU, torch uses MKL for fp32 products. MKL does not use AVX-512
on processors from vendors other than Intel. oneDNN, which torch also contains, uses it everywhere and takes half the
time there, or 0.8 of it on processors whose AVX-512 is as fast as their AVX2.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from megatron_lwz import processor

_WORTH = 2**24
"""Number of multiplications from which oneDNN is faster, despite its set-up and the copy of its result."""
_DEEP = 512
"""Terms of a sum, and columns of the result, from which oneDNN is faster also where AVX-512 is not."""
_UNIT = 64
"""Unit of rows for oneDNN, which keeps half a megabyte of code per shape, while packed sequences have any length.

oneDNN gets whole units of rows, MKL the few remaining rows.
"""


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Computes out = a [n, k] · b [k, m], accumulated in the dtype of `out`."""
    if _for_onednn(a, b, out):
        n, k = _whole(a.shape[0]), _whole(a.shape[1])
        out[:n].copy_(_onednn(a[:n, :k], b[:k]))
        out[:n].addmm_(a[:n, k:], b[k:])
        torch.mm(a[n:], b, out=out[n:])
    elif a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Computes total += a · b, accumulated in fp32 (fp64) also when `total` is narrower."""
    if _for_onednn(a, b, total):
        n, k = _whole(a.shape[0]), _whole(a.shape[1])
        total[:n].add_(_onednn(a[:n, :k], b[:k])).addmm_(a[:n, k:], b[k:])
        total[n:].addmm_(a[n:], b)
    elif a.dtype == total.dtype:
        total.addmm_(a, b)
    elif total.dtype in (torch.float32, torch.float64):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.add_(torch.mm(a, b))


def _for_onednn(a: Tensor, b: Tensor, out: Tensor) -> bool:
    if not (a.dtype == b.dtype == out.dtype == torch.float32 and a.device.type == "cpu" and mkl_leaves_avx512()):
        return False
    n, k = _whole(a.shape[0]), _whole(a.shape[1])
    part = b[:k]
    packed = part.is_contiguous() or part.t().is_contiguous()  # of other strides oneDNN makes a plain loop
    if not packed or n * k * b.shape[1] < _WORTH:
        return False
    return avx512_doubles() or (k >= _DEEP and a.stride(1) == 1 and (a.is_contiguous() or b.shape[1] >= _DEEP))


def _whole(count: int) -> int:
    return count - count % _UNIT


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


@functools.cache
def mkl_leaves_avx512() -> bool:
    """Whether this processor has AVX-512 that MKL does not use, and torch has oneDNN's product that does."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and processor.vendor() != "GenuineIntel" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def avx512_doubles() -> bool:
    """Whether AVX-512 multiplies twice as many numbers at a time as AVX2: on all but AMD's family 25 (Zen 4)."""
    return not (processor.vendor() == "AuthenticAMD" and processor.family() == "25")
