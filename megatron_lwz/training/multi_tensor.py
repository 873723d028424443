"""Norm and scaling of all gradients at once, for Megatron-Core without Transformer Engine and Apex.

Its own stand-ins read every tensor's norm back to the host, and so wait for the GPU once per tensor, and scale with two
kernels per tensor. These launch a few kernels for all of them, and never wait.
"""

from __future__ import annotations

import torch
from megatron.core import utils
from megatron.core.optimizer import clip_grads
from torch import Tensor


def install() -> None:
    """Puts both in the place of Megatron-Core's stand-ins. Kernels of Transformer Engine or Apex stay."""
    if clip_grads.l2_norm_impl is utils.local_multi_tensor_l2_norm:
        clip_grads.l2_norm_impl = l2_norm
    if clip_grads.multi_tensor_scale_impl is utils.local_multi_tensor_scale:
        clip_grads.multi_tensor_scale_impl = scale


def l2_norm(_chunk: int, _overflow: Tensor, lists: list[list[Tensor]], _per_tensor: bool) -> tuple[Tensor, None]:
    """Returns the L2 norm [1] of all tensors of the only list, on their device. Arguments are those of Apex's kernel."""
    (tensors,) = lists
    return torch.nn.utils.get_total_norm(tensors).reshape(1), None


def scale(_chunk: int, _overflow: Tensor, lists: list[list[Tensor]], factor: float) -> None:
    """Multiplies the tensors by `factor`, in place. `lists` holds sources and targets, which are the same here."""
    sources, targets = lists
    assert sources is targets
    torch._foreach_mul_(targets, factor)
