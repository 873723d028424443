"""The ops of a layer in plain torch. They run on a CPU, and the Triton kernels are tested against them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Implements `LayerOps.rms_norm`."""
    wide = _wide(x)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * weight).to(x.dtype)


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Implements `LayerOps.rotate`."""
    return _Rotate.apply(query, key, cos, sin)


def swiglu(x: Tensor) -> Tensor:
    """Implements `LayerOps.swiglu`."""
    return _SwiGlu.apply(x)


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the inverse rotation, so only the angles are saved for backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turn(query, cos, sin), _turn(key, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        query, key = (_turn(gradient, cos, -sin) for gradient in gradients)
        return query, key, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = _wide(x)
    first, second = wide.chunk(2, dim=-1)
    signed = torch.cat((-sin, sin), -1)[:, None]
    # Halves swapped by one copy and then worked on in place: twice as fast on a CPU as four strided products.
    return torch.cat((second, first), -1).mul_(signed).addcmul_(wide, torch.cat((cos, cos), -1)[:, None]).to(x.dtype)


class _SwiGlu(torch.autograd.Function):
    """Saves only its input for backward, because the sigmoid is cheap to recompute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = _wide(x).chunk(2, dim=-1)
        return F.silu(gate).mul_(up).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate, up = _wide(x).chunk(2, dim=-1)
        gradient = _wide(gradients[0])
        through_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return torch.cat((through_gate, F.silu(gate).mul_(gradient)), -1).to(x.dtype)
