"""The ops of a layer as Triton kernels, with the signatures of `plain`."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_lwz.kernels.layers import triton_kernels as kernels

_COLUMNS = 1024
"""Columns of a SwiGLU program: 8 per thread, one 16-byte load of bf16."""
_WARPS_PER_SM = 32
"""Warps per multiprocessor in the RMSNorm backward pass. Each program has a row of the partial weight gradient."""
_KEY_NUMBERS = 256
"""Numbers of a half of the key heads in a program of the rotation: 2 per thread, so a warp moves 128 bytes of bf16."""


def available() -> str | None:
    """Returns None where these kernels run, else the reason.

    They run on a GPU or, for tests on small shapes, in Triton's interpreter.
    """
    interpreted = not isinstance(kernels.swiglu_forward, triton.JITFunction)
    return None if interpreted or torch.cuda.is_available() else "there is no GPU"


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Implements `LayerOps.rms_norm`."""
    return _RmsNorm.apply(x, weight, eps)


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Implements `LayerOps.rotate`."""
    return _Rotate.apply(query, key, cos, sin)


def swiglu(x: Tensor) -> Tensor:
    """Implements `LayerOps.swiglu`."""
    return _SwiGlu.apply(x)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        out = torch.empty_like(x)
        scales = torch.empty(rows, dtype=torch.float32, device=x.device)
        block, warps = _row_block(width)
        kernels.rms_norm_forward[(rows,)](x, weight, out, scales, eps, width, block, num_warps=warps)
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        (rows,), width = scales.shape, x.shape[-1]
        block, warps = backward_block(width)
        programs = min(rows, _WARPS_PER_SM // warps * _processors(x.device))
        partial = torch.empty(programs, width, dtype=torch.float32, device=x.device)
        x_gradient = torch.empty_like(x)
        kernels.rms_norm_backward[(programs,)](
            gradients[0].contiguous(), x, weight, scales, x_gradient, partial, rows, width, block, num_warps=warps
        )
        return x_gradient, partial.sum(0).to(weight.dtype), None


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the inverse rotation, so only the angles are saved for backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turn(query, key, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_turn(*gradients, *ctx.saved_tensors, back=True), None, None


def _turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
    query, key = (heads if heads.stride(-1) == 1 else heads.contiguous() for heads in (query, key))
    outputs = tuple(torch.empty(heads.shape, dtype=heads.dtype, device=heads.device) for heads in (query, key))
    sizes = rotation_sizes(query.shape[1], key.shape[1], cos.shape[1])
    kernels.rotate_heads[(triton.cdiv(len(query), sizes["TOKEN_BLOCK"]),)](
        query, key, *outputs, cos.contiguous(), sin.contiguous(), len(query), *query.stride()[:2], *key.stride()[:2],
        BACK=back, **sizes, num_warps=rotation_warps(sizes),
    )  # fmt: skip
    return outputs[0], outputs[1]


class _SwiGlu(torch.autograd.Function):
    """Saves only its input for backward, because the sigmoid is cheap to recompute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        width = x.shape[-1] // 2
        out = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
        kernels.swiglu_forward[_column_grid(out)](x, out, width, _COLUMNS)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        x_gradient = torch.empty_like(x)
        kernels.swiglu_backward[_column_grid(gradient)](gradient, x, x_gradient, gradient.shape[-1], _COLUMNS)
        return x_gradient


def rotation_sizes(queries: int, keys: int, half: int) -> dict[str, int]:
    """Returns the compile-time sizes of `rotate_heads` for these heads of 2 · `half` numbers."""
    blocks = [triton.next_power_of_2(size) for size in (queries, keys, half)]
    tokens = max(1, _KEY_NUMBERS // (blocks[1] * blocks[2]))
    names = ("QUERIES", "KEYS", "HALF", "TOKEN_BLOCK", "QUERY_BLOCK", "KEY_BLOCK", "HALF_BLOCK")
    return dict(zip(names, (queries, keys, half, tokens, *blocks), strict=True))


def rotation_warps(sizes: dict[str, int]) -> int:
    """Returns the warps of a program of `rotate_heads`: at most 16 numbers of a half of the queries per thread."""
    return max(4, min(16, sizes["QUERY_BLOCK"] * sizes["HALF_BLOCK"] * sizes["TOKEN_BLOCK"] // 512))


def _row_block(width: int) -> tuple[int, int]:
    """Returns columns and warps of a program for a whole row: 8 to 16 values per thread and tensor: no spills."""
    block = triton.next_power_of_2(width)
    return block, max(4, min(16, block // 512))


def backward_block(width: int) -> tuple[int, int]:
    """Returns the same for the backward pass, which keeps a weight and a sum per column besides: 8 values per thread."""
    block = triton.next_power_of_2(width)
    return block, max(4, min(_WARPS_PER_SM, block // 256))


def _column_grid(out: Tensor) -> tuple[int, int]:
    return out.numel() // out.shape[-1], triton.cdiv(out.shape[-1], _COLUMNS)


def _processors(device: torch.device) -> int:
    """Returns the number of streaming multiprocessors; 1 in the interpreter."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1
