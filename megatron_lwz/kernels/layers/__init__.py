"""RMSNorm, rotary embedding and SwiGLU of a layer: one signature each, in plain torch, in C++ and in Triton.

Everything is computed in fp32 (fp64 for fp64 inputs) and rounded once, to the dtype of the input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lwz.errors import ConfigError
from megatron_lwz.kernels.layers import cpp, plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerOps:
    """One implementation of the three ops, all differentiable in every tensor but `cos` and `sin`."""

    name: str
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """(x [..., H], weight [H], eps) → w · x / sqrt(mean(x²) + eps) over the last dimension."""
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """(query [T, Q, D], key [T, K, D], cos, sin [T, D/2] fp32) → both, each head's (x₁, x₂) halves turned by the
    token's angles: (x₁·cos − x₂·sin, x₂·cos + x₁·sin). Heads may be strided views."""
    swiglu: Callable[[Tensor], Tensor]
    """[..., 2F] = [gate | up] → [..., F]: silu(gate) · up."""


PLAIN = LayerOps("torch", plain.rms_norm, plain.rotate, plain.swiglu)
CPP = LayerOps("cpp", cpp.rms_norm, cpp.rotate, cpp.swiglu)


def layer_ops(asked: str = "auto") -> LayerOps:
    """Returns the ops that `kernels.layers` selects here.

    Raises ConfigError for an explicit choice that cannot run here.
    """
    if asked == "torch":
        return PLAIN
    if asked == "cpp" or (asked == "auto" and not torch.cuda.is_available()):
        return _on_a_cpu(asked)
    reason = _fused_unavailable()
    if reason is None:
        from megatron_lwz.kernels.layers import triton as fused

        return LayerOps("triton", fused.rms_norm, fused.rotate, fused.swiglu)
    if asked == "auto":
        logger.info("layers: triton cannot run here (%s), so plain torch does its work", reason)
        return PLAIN
    raise ConfigError("kernels.layers", asked, f"cannot run here ({reason}): choose auto or torch")


def _on_a_cpu(asked: str) -> LayerOps:
    reason = cpp.available()
    if reason is not None and asked == "cpp":
        raise ConfigError("kernels.layers", asked, f"cannot run here ({reason}): choose auto or torch")
    return CPP if reason is None else PLAIN


def _fused_unavailable() -> str | None:
    try:
        from megatron_lwz.kernels.layers import triton as fused
    except ImportError as error:
        return str(error)
    return fused.available()
