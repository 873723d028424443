"""Tensors as safetensors files hold them."""

from __future__ import annotations

import torch

DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the raw bytes of a CPU tensor, without a copy if it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
