"""The speeds of the rotary embedding: by how much an angle grows from one position to the next."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_lwz.config import Architecture


def rotary_frequencies(arch: Architecture, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns θ^(−2i / D) for every pair i of dimensions, [D / 2], changed by YaRN if the architecture has it.

    YaRN (arXiv 2309.00071, section 3.2): pairs that turn often in the original context keep their speed, pairs that turn
    less than once get 1 / factor of it, and a linear ramp over the dimensions lies between. In fp32 the operations are those
    of transformers, to the same bits: at position 30,000 one unit in the last place of a speed moves an angle by 2e-3.
    """
    size, yarn = arch.head_size, arch.rope_scaling
    periods = arch.rope_theta ** (torch.arange(0, size, 2, dtype=dtype) / size)
    if yarn is None:
        return 1.0 / periods
    low, high = (
        _dimension(arch, turns, yarn.original_max_position_embeddings) for turns in (yarn.beta_fast, yarn.beta_slow)
    )
    first, last = max(math.floor(low), 0), min(math.ceil(high), size - 1)
    width = last - first if last != first else 0.001  # a step, where both bounds meet
    ramp = ((torch.arange(size // 2, dtype=dtype) - first) / width).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (yarn.factor * periods) * (1 - kept) + 1.0 / periods * kept


def _dimension(arch: Architecture, turns: float, length: int) -> float:
    """Returns the dimension whose pair turns so many times within `length` positions."""
    return arch.head_size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(arch.rope_theta))
