"""Attention of a decode step on a CPU, in C++ (csrc/cpu/decode_attention.cpp).

The newest token of every sequence attends to all its cached keys. The floor is one read of the keys and values. Torch's own
kernel multiplies small matrices one by one and needs a mask as wide as the longest row; this one needs neither, and turns
queries and keys by their position on the way.

Shape legend: R sequences, G key-value heads, Q query heads per key-value head, D head dimension, L layers, P
positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from megatron_lwz.kernels import _cpu
except ImportError:  # not built: `serves` says so
    _cpu = None  # type: ignore[assignment]

MOST_QUERIES = 16
"""Query heads per key-value head, as in C++."""
PAGE = 128
"""Tokens of a page, as in C++."""
COLUMNS = 32
"""Keys of a page whose numbers of one dimension lie together, as in C++."""
WIDTH = 8
"""Divides the head dimension, as in C++."""


def serves(queries: int, width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Returns whether the kernel can attend with this many query heads per key-value head, of this width."""
    return (
        _cpu is not None
        and device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and 0 < queries <= MOST_QUERIES
        and width % WIDTH == 0
        and _cpu.instructions() != "portable"
    )


def attend(
    mixed: Tensor, cos: Tensor, sin: Tensor, pages: Tensor, layer: int, lengths: Tensor, scale: float | None = None
) -> Tensor:
    """Attends with the newest token of every sequence, whose key and value it stores, too.

    `mixed` [R, G, Q + 2, D] holds queries, key and value before the rotary embedding, whose angles' cosine and sine stand
    in `cos` and `sin` [P, D] fp32, the first half of the sine with a minus sign. `pages` [R, pages] int64 holds the
    addresses of each sequence's pages (see `as_page`), of the dtype of `mixed`; 0: no page. `lengths` [R]
    int64 counts the tokens of every sequence, the newest one included, from 1 to what its pages hold and P. `scale` is the
    factor on the products, by default 1 / √D. Returns [R, G, Q, D] in the dtype of `mixed`; sums are fp32. Raises ValueError
    for another length.
    """
    rows, groups, parts, width = mixed.shape
    assert mixed.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
    assert all(x.dtype == torch.int64 and x.is_contiguous() and len(x) == rows for x in (pages, lengths))
    result = torch.empty(rows, groups, parts - 2, width)
    factor = width**-0.5 if scale is None else scale
    _cpu.decode_attention(mixed, cos, sin, pages, layer, lengths, result, factor, torch.get_num_threads())
    return result.to(mixed.dtype)


def as_page(cached: Tensor) -> Tensor:
    """Returns keys and values [..., 2, N, D] of up to PAGE tokens as a page [..., 2, PAGE · D], zeros behind them.

    Its keys lie as [PAGE / COLUMNS, D, COLUMNS], so that their products with a query need no sum across a register; its
    values as [PAGE, D].
    """
    whole = F.pad(cached, (0, 0, 0, PAGE - cached.shape[-2]))
    keys = whole[..., 0, :, :].unflatten(-2, (-1, COLUMNS)).transpose(-1, -2)
    return torch.stack((keys.flatten(-3), whole[..., 1, :, :].flatten(-2)), -2)


def of_page(page: Tensor) -> Tensor:
    """Returns the keys and values [..., 2, PAGE, D] of a page."""
    width = page.shape[-1] // PAGE
    keys = page[..., 0, :].unflatten(-1, (-1, width, COLUMNS)).transpose(-1, -2)
    return torch.stack((keys.flatten(-3, -2), page[..., 1, :].unflatten(-1, (PAGE, width))), -3)
