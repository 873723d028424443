"""Causal core attention without Transformer Engine: flash-attn, torch's varlen kernel, or torch's SDPA.

Packed micro-batches (`thd`) are cut at `cu_seqlens`, so no token sees another document. Under context parallelism every
rank gathers all keys and values. It attends from its own two chunks of each segment, each back to the segment's start.
So every case has one form: pieces of queries that see a piece of keys, aligned at the end (the last query sees the last
key, the one before it one key less …).

The plan depends on the segments alone and is made once per micro-batch. Layers neither read lengths back from the GPU
nor iterate over segments in Python.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_lwz.distributed.context_parallel import chunks, gathered_order
from megatron_lwz.kernels.layers import PLAIN, LayerOps
from megatron_lwz.models.suffix_attention import attend_suffix

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Pieces:
    """Which keys each query sees: queries cu_q[i]:cu_q[i + 1] see keys cu_k[i]:cu_k[i + 1], causal, aligned at the end.

    `key_index` [sum of key lengths] int64 selects the keys from the gathered ones first; None uses them unchanged.
    `positions` [T] int64 is each query's position in its segment.
    """

    cu_q: list[int]
    cu_k: list[int]
    key_index: Tensor | None
    positions: Tensor
    starts_q: Tensor
    starts_k: Tensor

    @property
    def longest(self) -> tuple[int, int]:
        """Returns the largest number of queries and the largest number of keys of a piece."""
        queries, keys = (max(b - a for a, b in pairwise(starts)) for starts in (self.cu_q, self.cu_k))
        return queries, keys


def plan_pieces(cu_seqlens: Tensor, cp_size: int = 1, cp_rank: int = 0) -> Pieces:
    """Returns the pieces of a pack with segment starts `cu_seqlens` [S + 1] for one context-parallel rank."""
    device = cu_seqlens.device
    cu_seqlens = cu_seqlens.cpu()  # the only wait for the GPU, once per micro-batch
    found = list(chunks(cu_seqlens, cp_size, cp_rank))
    cu_q = [0, *accumulate(end - begin for _, begin, end in found)]
    cu_k = [0, *accumulate(end - start for start, _, end in found)]
    positions = torch.cat([torch.arange(begin - start, end - start) for start, begin, end in found])
    key_index = None
    if cp_size > 1:
        order = gathered_order(cu_seqlens, cp_size)
        key_index = torch.cat([order[start:end] for start, _, end in found]).to(device, non_blocking=True)
    positions, starts_q, starts_k = (
        indices.to(device, non_blocking=True)
        for indices in (positions, *(torch.tensor(starts, dtype=torch.int32) for starts in (cu_q, cu_k)))
    )
    return Pieces(cu_q, cu_k, key_index, positions, starts_q, starts_k)


@dataclass(frozen=True)
class _Plan:
    """Data of a packed micro-batch for every layer: its pieces, and cos and sin [T, D/2] fp32 of its RoPE angles."""

    pieces: Pieces
    cos: Tensor
    sin: Tensor


class PackedSelfAttention(SelfAttention):
    """Megatron's self-attention, except that packed queries and keys are rotated in the core attention slot.

    Upstream iterates over the segments in Python, for queries and keys of each layer, and recomputes the cosines each
    time.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[T (/ TP), 1, H] → the same; `rotary_pos_emb` [longest segment, 1, 1, D]: angles in two equal halves."""
        if packed_seq_params is not None:
            assert rotary_pos_emb is not None
            self._plan(packed_seq_params, rotary_pos_emb)
            rotary_pos_emb = None
        return super().forward(
            hidden_states,
            attention_mask,
            *args,
            rotary_pos_emb=rotary_pos_emb,
            packed_seq_params=packed_seq_params,
            **kwargs,
        )

    def _plan(self, params: PackedSeqParams, angles: Tensor) -> None:
        """Makes the plan once per micro-batch, stored on its `PackedSeqParams` for all layers and the recomputation."""
        if getattr(params, "plan", None) is None:
            group = self.pg_collection.cp
            pieces = plan_pieces(params.cu_seqlens_q, group.size(), group.rank())
            chosen = angles[pieces.positions, 0, 0, : angles.shape[-1] // 2].float()
            params.plan = _Plan(pieces, chosen.cos(), chosen.sin())


class CausalAttention(MegatronModule):
    """Megatron's core attention slot: takes this rank's heads of queries, keys and values, returns context vectors.

    Packed queries and keys arrive without their rotary embedding (see PackedSelfAttention). With `flash`, packed bf16
    micro-batches on a GPU run through flash-attn; otherwise through torch's varlen kernel.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        flash: bool = False,
        ops: LayerOps = PLAIN,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        assert pg_collection is not None
        self.scale = softmax_scale
        self.flash = flash
        self.ops = ops
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
        plan: _Plan = params.plan
        query, key = self.ops.rotate(query, key, plan.cos, plan.sin)
        if plan.pieces.key_index is not None:
            both = gather_from_sequence_parallel_region(torch.cat([key, value], -1), group=self.context_group)
            key, value = both[plan.pieces.key_index].split([key.shape[-1], value.shape[-1]], dim=-1)
        return attend_pieces(query, key, value, plan.pieces, scale=self.scale, flash=self.flash)


def attend_pieces(
    query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, *, scale: float | None = None, flash: bool = False
) -> Tensor:
    """Attends piece by piece; returns [Tq, heads, d].

    `query` is [Tq, heads, d]; `key` and `value` are [Tk, key-value heads, d].
    """
    if query.is_cuda and query.dtype in _HALF:
        kernel = _flash_attention if flash else _torch_varlen  # both align the causal mask at the end
        return kernel(query, key, value, (pieces.starts_q, pieces.starts_k, *pieces.longest), scale)
    outputs = []
    sizes_q, sizes_k = ([b - a for a, b in pairwise(starts)] for starts in (pieces.cu_q, pieces.cu_k))
    # Split, not sliced: the gradient of n slices would be n full-size additions.
    for parts in zip(query.split(sizes_q), key.split(sizes_k), value.split(sizes_k), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in parts)
        outputs.append(attend(q, k, v, scale=scale)[0].transpose(0, 1))
    return torch.cat(outputs)


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, hidden: Tensor | None = None) -> Tensor:
    """Torch's SDPA on [b, heads, s, d]. Causal: the last query sees all keys. Fewer key-value heads are allowed.

    `hidden` (bool, broadcast to [b, heads, s, t], True = masked) replaces the causal mask.
    """
    queries, keys = q.shape[2], k.shape[2]
    mask = None
    if hidden is not None:
        mask = ~hidden
    elif 1 < queries < keys:
        if q.device.type == "cpu":
            return attend_suffix(q, k, v, scale)
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

    # Torch 2.11 accepts fewer key-value heads as they are; later releases need `enable_gqa`.
    grouped: dict[str, Any] = {}
    if query.shape[1] != key.shape[1] and _must_say_grouped():
        grouped["enable_gqa"] = True
    return cast(Tensor, varlen_attn(query, key, value, *layout, scale=scale, window_size=(-1, 0), **grouped))


@cache
def _must_say_grouped() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
