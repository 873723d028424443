"""Attention of a piece of a prompt: to what stands before it, and causally to itself.

The two parts are computed without a mask and merged by their log-sum-exps (the rule of FlashAttention, arXiv 2205.14135,
section 3.1). A mask of queries × keys would be built for every layer, and torch's fast kernel on a CPU takes none.

Shape legend: T tokens of the piece, N tokens up to its end, G key-value heads, Q query heads per key-value head, D head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""torch's CPU kernel, which also returns the log-sum-exps. `F.scaled_dot_product_attention` calls it and drops them."""


def attend_piece(query: Tensor, seen: Tensor, scale: float | None) -> Tensor:
    """Attends with the last T of N tokens: query [T, G, Q, D], keys and values [G, 2, N, D] → [T, G, Q, D].

    `scale` is the factor on the products; None: 1 / √D.
    """
    count, groups, per_group, _ = query.shape
    past = seen.shape[2] - count
    if past and query.device.type == "cpu":
        return _merged(query, seen, past, scale)
    output = F.scaled_dot_product_attention(
        query.flatten(1, 2).transpose(0, 1)[None],
        _for_each_query_head(seen[:, 0], per_group),
        _for_each_query_head(seen[:, 1], per_group),
        attn_mask=_aligned_at_the_end(count, seen.shape[2]) if past else None,
        is_causal=not past,
        scale=scale,
    )
    return output[0].transpose(0, 1).unflatten(1, (groups, per_group))


def _merged(query: Tensor, seen: Tensor, past: int, scale: float | None) -> Tensor:
    count, groups, per_group, size = query.shape
    rows = query.permute(1, 2, 0, 3)  # [G, Q, T, D]
    before, lse_before = _on_cpu(  # every query sees all of it, so a group's heads are rows of one product
        rows.reshape(1, groups, per_group * count, size), seen[None, :, 0, :past], seen[None, :, 1, :past], scale=scale
    )
    own, lse_own = _on_cpu(
        rows.reshape(1, groups * per_group, count, size),
        _for_each_query_head(seen[:, 0, past:], per_group),
        _for_each_query_head(seen[:, 1, past:], per_group),
        is_causal=True,
        scale=scale,
    )
    shape = (groups, per_group, count)
    share = torch.sigmoid(lse_before.reshape(shape) - lse_own.reshape(shape))[..., None]  # of the past, in fp32
    own = own.reshape(*shape, size)
    merged = own + (before.reshape(*shape, size) - own) * share
    return merged.to(query.dtype).permute(2, 0, 1, 3)


def _aligned_at_the_end(queries: int, keys: int) -> Tensor:
    """Returns torch's name for the causal mask of the last queries, for which its GPU kernels need no mask."""
    from torch.nn.attention.bias import causal_lower_right  # its module loads torch's compiler, which no CPU path uses

    return causal_lower_right(queries, keys)


def _for_each_query_head(part: Tensor, per_group: int) -> Tensor:
    """[G, N, D] → [1, G · Q, N, D]: torch's kernels for a CPU want as many key heads as query heads."""
    return part.repeat_interleave(per_group, 0)[None] if per_group > 1 else part[None]
