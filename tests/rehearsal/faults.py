"""Faults that a case plants into the product before its stage runs (`Case.fault`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from megatron_lwz.kernels.layers import triton as layers
from megatron_lwz.models import attention
from megatron_lwz.models.decoding_buckets import BucketAttention
from megatron_lwz.training import step


def _leave_on_host(name: str) -> None:
    move = step.to_device
    step.to_device = lambda micro: dataclasses.replace(move(micro), **{name: getattr(micro, name)})


def host_tensor_in_an_operation(_device: Any) -> None:
    """The tokens stay on the host, the embedding is on the GPU."""
    _leave_on_host("tokens")


def host_tensor_in_a_kernel(_device: Any) -> None:
    """The loss weights stay on the host; only a kernel reads them."""
    _leave_on_host("weights")


def wrong_dtype_in_a_kernel(_device: Any) -> None:
    """The cosines arrive as bf16; the kernel would read two of them as one number."""
    turn = layers._turn
    layers._turn = lambda query, key, cos, sin, **rest: turn(query, key, cos.bfloat16(), sin, **rest)


def wrong_dtype_in_a_product(_device: Any) -> None:
    """A factor of the output layer is fp32, the other bf16."""
    from megatron_lwz.kernels.linear_logprob import head

    multiply = head.multiply
    head.multiply = lambda a, b, out: multiply(a.float(), b, out)


def wrong_grid(_device: Any) -> None:
    """SwiGLU covers the first block of columns only."""
    layers._column_grid = lambda out: (out.numel() // out.shape[-1],)
    layers._COLUMNS = 256


def missing_argument(_device: Any) -> None:
    """A launch forgets what the kernel gained last."""
    kernels = layers.kernels
    whole = kernels.swiglu_forward

    class Forgetful:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments: whole[grid](*arguments[:-1])

    kernels.swiglu_forward = Forgetful()


def extra_wait(_device: Any) -> None:
    """Every layer reads a number back from the GPU, as a check for NaN would."""
    attend = attention.attend_pieces

    def checked(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = attend(*args, **kwargs)
        assert out.sum().item() > float("-inf")
        return out

    attention.attend_pieces = checked


def wait_in_a_recorded_step(_device: Any) -> None:
    """The decoder's attention asks for its longest row, as it must not while a step is recorded."""
    at = BucketAttention.at

    def looking(self: BucketAttention, positions: torch.Tensor) -> Any:
        positions.max().item()
        return at(self, positions)

    BucketAttention.at = looking  # type: ignore[method-assign]


def _change_rotation(**changes: Any) -> None:
    """Changes what Megatron hands to Transformer Engine's rotary embedding of a pack: the angles, or where segments begin."""
    from megatron.core.models.common.embeddings import rope_utils

    rotate = rope_utils.fused_apply_rotary_pos_emb_thd

    def changed(x: torch.Tensor, starts: torch.Tensor, angles: torch.Tensor, **rest: Any) -> torch.Tensor:
        same = lambda tensor: tensor  # noqa: E731
        return rotate(x, changes.get("starts", same)(starts), changes.get("angles", same)(angles), **rest)

    rope_utils.fused_apply_rotary_pos_emb_thd = changed


def host_angles(_device: Any) -> None:
    """The extension reads them by their address."""
    _change_rotation(angles=lambda angles: angles.cpu())


def strided_angles(_device: Any) -> None:
    """The same angles in another order in memory."""
    _change_rotation(angles=lambda angles: angles.transpose(0, -1).contiguous().transpose(0, -1))


def long_positions(_device: Any) -> None:
    """Two numbers of 32 bits would be read for one."""
    _change_rotation(starts=lambda starts: starts.long())
