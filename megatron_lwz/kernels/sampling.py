"""Draws tokens from logits on a CPU, in C++ (csrc/cpu/sampling.cpp): one read of the logits, and a look at one block of them.

Plain torch takes seven passes, each as long as the product that made the logits where the vocabulary is large.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from megatron_lwz.kernels import _cpu
except ImportError:  # not built: `serves` says so
    _cpu = None  # type: ignore[assignment]


def serves(logits: Tensor) -> bool:
    """Returns whether the kernel can draw from these logits."""
    return _cpu is not None and logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.stride(-1) == 1


def draw(logits: Tensor, scales: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (tokens [N] int64, log-probs [N] fp32) of the softmax of logits [N, V] times the row's `scales` [N] > 0.

    Inverts the cumulative distribution, summed in fp64 in vocabulary order, at `noise` [N] fp32 in [0, 1).
    """
    tokens, logprobs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
    assert scales.dtype == noise.dtype == torch.float32 and scales.is_contiguous() and noise.is_contiguous()
    assert scales.shape == noise.shape == tokens.shape
    _cpu.draw(logits, scales, noise, tokens, logprobs, torch.get_num_threads())
    return tokens, logprobs
