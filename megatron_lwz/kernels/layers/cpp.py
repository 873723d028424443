"""The ops of a layer in C++ (csrc/cpu/layers.cpp), forward and backward: one pass over their inputs each.

Rows are computed in one order by one thread, and the norm's weight gradient is summed in blocks of 64 rows, so results are
bitwise equal for any number of threads. What the kernels do not take (fp64, odd widths, other devices) goes to plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_lwz.kernels.layers import plain

_reason: str | None = None
try:
    from megatron_lwz.kernels import _cpu
except ImportError as error:
    _reason = f"the C++ kernels are not built: install a C++ compiler, then the package once more ({error})"

WIDTH = 8
"""Divides the width of a row, as in C++."""
ROWS_PER_SUM = 64
"""Rows whose weight gradients are summed together, as in C++."""


def available() -> str | None:
    """Returns None when the ops can run here, else the reason in one line."""
    return _reason


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Implements `LayerOps.rms_norm`."""
    if not _serves(x, x.shape[-1]) or weight.dtype != x.dtype:
        return plain.rms_norm(x, weight, eps)
    return _RmsNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _normalised(x, weight, eps)[0]


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Implements `LayerOps.rotate`."""
    if not all(_serves(x, x.shape[-1] // 2) for x in (query, key)):
        return plain.rotate(query, key, cos, sin)
    return _Rotate.apply(query, key, cos, sin)


def rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns heads [T, heads, D] with cos and sin [T, D / 2] fp32, which `rotates` says can be done. Without gradients."""
    _cpu.rotate(x, cos, sin, 1.0, x, torch.get_num_threads())


def rotates(x: Tensor) -> bool:
    """Returns whether the kernel turns heads of this type and width [..., D]."""
    return _reason is None and _serves(x, x.shape[-1] // 2) and x.stride(-1) == 1


def swiglu(x: Tensor) -> Tensor:
    """Implements `LayerOps.swiglu`."""
    if not _serves(x, x.shape[-1] // 2):
        return plain.swiglu(x)
    return _SwiGlu.apply(x) if torch.is_grad_enabled() else _activated(x)


def _serves(x: Tensor, width: int) -> bool:
    formats = (torch.float32, torch.bfloat16)
    return x.device.type == "cpu" and x.dtype in formats and width > 0 and width % WIDTH == 0


def _rows(x: Tensor) -> Tensor:
    """Returns x if it is contiguous, else a matrix of its rows; a copy only where no view is one."""
    if x.is_contiguous():
        return x
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


class _RmsNorm(torch.autograd.Function):
    """Saves only its input and one number per row for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scales = _normalised(x, weight, eps)
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        rows, gradient = _rows(x), _rows(gradients[0].to(x.dtype))
        result = torch.empty(x.shape, dtype=x.dtype)
        partial = torch.zeros(-(-scales.numel() // ROWS_PER_SUM), x.shape[-1])
        _cpu.rms_norm_backward(gradient, rows, weight.contiguous(), scales, result, partial, torch.get_num_threads())
        return result, partial.sum(0).to(weight.dtype), None


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the output, and the number that every row was multiplied by."""
    out, scales = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape[:-1])
    _cpu.rms_norm(_rows(x), weight.contiguous(), out, scales, eps, torch.get_num_threads())
    return out, scales


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the inverse rotation, so only the angles are saved for backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turned(query, cos, sin, 1.0), _turned(key, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        query, key = (_turned(gradient, cos, sin, -1.0) for gradient in gradients)
        return query, key, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    heads = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype)
    _cpu.rotate(heads, cos.float().contiguous(), sin.float().contiguous(), sign, out, torch.get_num_threads())
    return out


class _SwiGlu(torch.autograd.Function):
    """Saves only its input for backward, because the sigmoid is cheap to recompute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _activated(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        rows, gradient = _rows(x), _rows(gradients[0].to(x.dtype))
        result = torch.empty(x.shape, dtype=x.dtype)
        _cpu.swiglu_backward(gradient, rows, result, torch.get_num_threads())
        return result


def _activated(x: Tensor) -> Tensor:
    out = torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype)
    _cpu.swiglu(_rows(x), out, torch.get_num_threads())
    return out
