"""Causal attention of the last tokens of a sequence: to what stands before them, and causally to themselves.

The two parts are computed without a mask and merged by their log-sum-exps (the rule of FlashAttention, arXiv 2205.14135,
section 3.1). A mask of queries × keys would be built for every layer, and torch's fast kernel on a CPU takes none. The
gradient of each part is that of FlashAttention with the merged output and log-sum-exp, as in ring attention.

Shape legend: b batch, S last tokens, N tokens of the sequence, G key-value heads, Q query heads per key-value head, D head
dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""torch's CPU kernel, which also returns the log-sum-exps. `F.scaled_dot_product_attention` calls it and drops them."""
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_suffix(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Attends with the last S of N tokens on a CPU: query [b, G · Q, S, D], key and value [b, G, N, D] → query's shape.

    `scale` is the factor on the products; None: 1 / √D. S < N. Differentiable.
    """
    return _Suffix.apply(query, key, value, scale)


def attend_piece(query: Tensor, seen: Tensor, scale: float | None) -> Tensor:
    """Attends with the last S of N tokens: query [S, G, Q, D], keys and values [G, 2, N, D] → [S, G, Q, D].

    `scale` is the factor on the products; None: 1 / √D. Without gradients on a GPU.
    """
    count, groups, per_group, _ = query.shape
    past = seen.shape[2] - count
    heads = query.flatten(1, 2).transpose(0, 1)[None]
    if past and query.device.type == "cpu":
        output = attend_suffix(heads, seen[None, :, 0], seen[None, :, 1], scale)
    else:
        output = F.scaled_dot_product_attention(
            heads,
            _for_each_query_head(seen[None, :, 0], per_group),
            _for_each_query_head(seen[None, :, 1], per_group),
            attn_mask=_aligned_at_the_end(count, seen.shape[2]) if past else None,
            is_causal=not past,
            scale=scale,
        )
    return output[0].transpose(0, 1).unflatten(1, (groups, per_group))


class _Suffix(torch.autograd.Function):
    """`attend_suffix`. Saves its inputs, its output and one number per query for backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        past, per_group = key.shape[2] - query.shape[2], query.shape[1] // key.shape[1]
        before, lse_before = _forward(_as_rows(query, per_group), key[:, :, :past], value[:, :, :past], scale=scale)
        own_key, own_value = (_for_each_query_head(x[:, :, past:], per_group) for x in (key, value))
        own, lse_own = _forward(query, own_key, own_value, is_causal=True, scale=scale)
        lse_before = lse_before.reshape(lse_own.shape)
        share = torch.sigmoid(lse_before - lse_own)[..., None]  # of what stands before, in fp32 at least
        merged = (own + (before.reshape(own.shape) - own) * share).to(query.dtype)
        ctx.save_for_backward(query, key, value, merged, torch.logaddexp(lse_before, lse_own))
        ctx.scale = scale
        return merged

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, merged, lse = ctx.saved_tensors
        past, per_group = key.shape[2] - query.shape[2], query.shape[1] // key.shape[1]
        rows = [_as_rows(x, per_group) for x in (gradients[0], query, merged, lse)]
        before = _backward(
            rows[0], rows[1], key[:, :, :past], value[:, :, :past], *rows[2:], 0.0, False, scale=ctx.scale
        )
        own_key, own_value = (_for_each_query_head(x[:, :, past:], per_group) for x in (key, value))
        own = _backward(gradients[0], query, own_key, own_value, merged, lse, 0.0, True, scale=ctx.scale)
        of_key, of_value = (
            torch.cat((of_before, of_own.unflatten(1, (-1, per_group)).sum(2)), 2)
            for of_before, of_own in zip(before[1:], own[1:], strict=True)
        )
        return before[0].reshape(query.shape) + own[0], of_key, of_value, None


def _as_rows(x: Tensor, per_group: int) -> Tensor:
    """[b, G · Q, S, …] → [b, G, Q · S, …]: all queries see all of what stands before, so a group's heads are one product."""
    return x.unflatten(1, (-1, per_group)).flatten(2, 3)


def _for_each_query_head(part: Tensor, per_group: int) -> Tensor:
    """[b, G, N, D] → [b, G · Q, N, D]: torch's kernels for a CPU want as many key heads as query heads."""
    return part.repeat_interleave(per_group, 1) if per_group > 1 else part


def _aligned_at_the_end(queries: int, keys: int) -> Tensor:
    """Returns torch's name for the causal mask of the last queries, for which its GPU kernels need no mask."""
    from torch.nn.attention.bias import causal_lower_right  # its module loads torch's compiler, which no CPU path uses

    return causal_lower_right(queries, keys)
