"""Attention of a decode step on a CPU, in C++ (csrc/cpu/decode_attention.cpp).

The newest token of every sequence attends to all its cached keys. The floor is one read of the keys and values. Torch's own
kernel multiplies small matrices one by one and needs a mask as wide as the longest row; this one needs neither.

Shape legend: R sequences, G key-value heads, Q query heads per key-value head, D head dimension, C capacity of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_lwz.kernels import thin_product

try:
    from megatron_lwz.kernels import _cpu
except ImportError:  # not built: `serves` says so
    _cpu = None  # type: ignore[assignment]

MOST_QUERIES = 16
"""Query heads per key-value head, as in C++."""


def serves(queries: int, store: Tensor) -> bool:
    """Returns whether the kernel can attend with this many query heads per key-value head to this cache."""
    return (
        thin_product.serves(1, store)  # the same build, device, types and instruction set
        and 0 < queries <= MOST_QUERIES
        and store.shape[-1] % 8 == 0
    )


def attend(query: Tensor, store: Tensor, lengths: Tensor, scale: float | None = None) -> Tensor:
    """Attends with query [R, G, Q, D] to the first `lengths` [R] keys of the rows of `store` [≥ R, G, 2, C, D].

    `lengths` is int64, from 1 to C. `scale` is the factor on the products, by default 1 / √D. Returns [R, G, Q, D] in the
    query's dtype; sums are fp32. Raises ValueError for another length.
    """
    scaled = (query.float() * (store.shape[-1] ** -0.5 if scale is None else scale)).contiguous()
    result = torch.empty_like(scaled)
    _cpu.decode_attention(scaled, store, lengths, result, torch.get_num_threads())
    return result.to(query.dtype)
