"""Causal core attention without Transformer Engine: flash-attn, torch's varlen kernel, or torch's SDPA.

Packed micro-batches (`thd`) are cut at `cu_seqlens`, so no token sees another document. Under context parallelism
every rank gathers all keys and values and attends from its own two chunks of each segment, each to the segment's
start. Every case is then the same one: pieces of queries that see a piece of keys, aligned at the end (the last
query sees the last key, the one before it one key less …).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_lwz.distributed import platform
from megatron_lwz.distributed.context_parallel import chunks, gathered_order

_HALF = (torch.float16, torch.bfloat16)


def has_flash_attention() -> bool:
    """Whether the flash-attn package and a GPU to run it on are here."""
    return platform.has_gpu() and importlib.util.find_spec("flash_attn") is not None


@dataclass(frozen=True)
class Pieces:
    """How queries meet keys: queries cu_q[i]:cu_q[i + 1] see keys cu_k[i]:cu_k[i + 1], causal, aligned at the end.

    `key_index` [sum of key lengths] int64 first picks the keys from the gathered ones; None takes them as they are.
    """

    cu_q: list[int]
    cu_k: list[int]
    key_index: Tensor | None
    starts_q: Tensor
    starts_k: Tensor


def plan_pieces(cu_seqlens: Tensor, cp_size: int = 1, cp_rank: int = 0) -> Pieces:
    """The pieces of a pack with segment starts `cu_seqlens` [S + 1] for one context-parallel rank."""
    found = list(chunks(cu_seqlens, cp_size, cp_rank))
    cu_q = [0, *accumulate(end - begin for _, begin, end in found)]
    cu_k = [0, *accumulate(end - start for start, _, end in found)]
    key_index = None
    if cp_size > 1:
        order = gathered_order(cu_seqlens, cp_size)
        key_index = torch.cat([order[start:end] for start, _, end in found]).to(cu_seqlens.device)
    starts_q, starts_k = (
        torch.tensor(starts, dtype=torch.int32).to(cu_seqlens.device, non_blocking=True) for starts in (cu_q, cu_k)
    )
    return Pieces(cu_q, cu_k, key_index, starts_q, starts_k)


class CausalAttention(MegatronModule):
    """Megatron's core attention slot: queries, keys and values of this rank's heads in, context vectors out.

    `flash` lets packed bf16 micro-batches on a GPU run through flash-attn; otherwise torch's varlen kernel takes them.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        flash: bool = False,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        assert pg_collection is not None
        self.scale = softmax_scale
        self.flash = flash
        self.context_group: dist.ProcessGroup = pg_collection.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_seq_params: PackedSeqParams | None = None,
        **_: Any,
    ) -> Tensor:
        """Packed: [T, heads, d] → [T, heads · d]. Plain: [s, b, heads, d] → [s, b, heads · d], causal.

        `attention_mask` (plain only) replaces the causal one; True hides a key, as everywhere in Megatron.
        """
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params).flatten(1)
        assert self.context_group.size() == 1, "context parallelism needs packed micro-batches"
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        out = attend(q, k, v, scale=self.scale, hidden=attention_mask)
        return out.permute(2, 0, 1, 3).flatten(2)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, params: PackedSeqParams) -> Tensor:
        pieces = self._pieces(params)
        if pieces.key_index is not None:
            both = gather_from_sequence_parallel_region(torch.cat([key, value], -1), group=self.context_group)
            key, value = both[pieces.key_index].split([key.shape[-1], value.shape[-1]], dim=-1)
        return attend_pieces(query, key, value, pieces, scale=self.scale, flash=self.flash)

    def _pieces(self, params: PackedSeqParams) -> Pieces:
        """Planned once per micro-batch and kept on its `PackedSeqParams`, for all layers and the recompute."""
        pieces: Pieces | None = getattr(params, "pieces", None)
        if pieces is None:
            pieces = plan_pieces(params.cu_seqlens_q, self.context_group.size(), self.context_group.rank())
            params.pieces = pieces
        return pieces


def attend_pieces(
    query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, *, scale: float | None = None, flash: bool = False
) -> Tensor:
    """[Tq, heads, d] queries over [Tk, key-value heads, d] keys and values, piece by piece → [Tq, heads, d]."""
    if query.is_cuda and query.dtype in _HALF:
        kernel = _flash_attention if flash else _torch_varlen  # both align the causal mask at the end
        longest = [max(b - a for a, b in pairwise(starts)) for starts in (pieces.cu_q, pieces.cu_k)]
        return kernel(query, key, value, (pieces.starts_q, pieces.starts_k, *longest), scale)
    outputs = []
    sizes_q, sizes_k = ([b - a for a, b in pairwise(starts)] for starts in (pieces.cu_q, pieces.cu_k))
    # Split, not sliced: the gradient of n slices would be n full-size additions.
    for parts in zip(query.split(sizes_q), key.split(sizes_k), value.split(sizes_k), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in parts)
        outputs.append(attend(q, k, v, scale=scale)[0].transpose(0, 1))
    return torch.cat(outputs)


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, hidden: Tensor | None = None) -> Tensor:
    """Torch's SDPA on [b, heads, s, d], fewer key-value heads allowed; causal, the last query sees all keys.

    `hidden` (bool, broadcast to [b, heads, s, t], True = masked) replaces the causal mask.
    """
    queries, keys = q.shape[2], k.shape[2]
    mask = None
    if hidden is not None:
        mask = ~hidden
    elif 1 < queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=hidden is None and 1 < queries == keys,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, layout: tuple[Any, ...], scale: float | None) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(query, key, value, *layout, softmax_scale=scale, causal=True)


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, layout: tuple[Any, ...], scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped = query.shape[1] != key.shape[1]
    return cast(Tensor, varlen_attn(query, key, value, *layout, scale=scale, window_size=(-1, 0), enable_gqa=grouped))
