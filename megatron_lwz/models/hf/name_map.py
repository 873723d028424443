"""One table between Hugging Face's Qwen tensors and Megatron's parameters, used in both directions.

A row says where the tensor-parallel share of one HF tensor lies inside a local Megatron parameter. That share is always
a slice of the HF tensor along one dimension, and always a view of the parameter. So loading copies slice → view, and
exporting gathers the views along the same dimension. The special cases follow from this rule:

- `linear_qkv` holds, per key-value group, the group's query heads, its key head, its value head;
- `linear_fc1` holds the rank's gate rows, then its up rows;
- the embedding and the head have padding rows past the true vocabulary: they are outside the HF tensor and stay zero.

A policy ends in `lm_head`, a reward model in `score`; the rest of the table is the same for both. Rows that only some
families have name the property of `config.families.Family` that says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from math import prod
from typing import Any, Literal

import torch

from megatron_lwz.config import Architecture

Shape = tuple[int, ...]


class Part(Enum):
    """The part of a Megatron parameter that an HF tensor corresponds to."""

    WHOLE = "whole"
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    GATE = "gate"
    UP = "up"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    `{i}` in a name is the layer number: global in `hf`, counted within the chunk in `megatron`.
    """

    hf: str
    megatron: tuple[str, ...]
    """The parameter's name. Further names are those of Transformer Engine's fused layers."""
    shape: tuple[str, ...]
    """The HF tensor's shape, as keys of `sizes`."""
    split: int | None
    """Dimension of the HF tensor that tensor parallelism splits. None: every rank holds the whole tensor."""
    part: Part = Part.WHOLE
    only: Literal["qkv_bias", "qk_norm"] | None = None
    """The property of a family that has this tensor. None: all have it."""


_LAYER, _CHUNK = "model.layers.{i}.", "decoder.layers.{i}."
_ATTENTION = _CHUNK + "self_attention."
_QKV, _FC1 = _ATTENTION + "linear_qkv.", _CHUNK + "mlp.linear_fc1."

EMBEDDING, HEAD, SCORE = "model.embed_tokens.weight", "lm_head.weight", "score.weight"

TABLE: tuple[Row, ...] = (
    Row(EMBEDDING, ("embedding.word_embeddings.weight",), ("vocab", "hidden"), 0),
    Row(
        _LAYER + "input_layernorm.weight",
        (_CHUNK + "input_layernorm.weight", _QKV + "layer_norm_weight"),
        ("hidden",),
        None,
    ),
    Row(_LAYER + "self_attn.q_proj.weight", (_QKV + "weight",), ("query", "hidden"), 0, Part.QUERY),
    Row(_LAYER + "self_attn.q_proj.bias", (_QKV + "bias",), ("query",), 0, Part.QUERY, "qkv_bias"),
    Row(_LAYER + "self_attn.k_proj.weight", (_QKV + "weight",), ("key_value", "hidden"), 0, Part.KEY),
    Row(_LAYER + "self_attn.k_proj.bias", (_QKV + "bias",), ("key_value",), 0, Part.KEY, "qkv_bias"),
    Row(_LAYER + "self_attn.v_proj.weight", (_QKV + "weight",), ("key_value", "hidden"), 0, Part.VALUE),
    Row(_LAYER + "self_attn.v_proj.bias", (_QKV + "bias",), ("key_value",), 0, Part.VALUE, "qkv_bias"),
    Row(_LAYER + "self_attn.q_norm.weight", (_ATTENTION + "q_layernorm.weight",), ("head",), None, only="qk_norm"),
    Row(_LAYER + "self_attn.k_norm.weight", (_ATTENTION + "k_layernorm.weight",), ("head",), None, only="qk_norm"),
    Row(
        _LAYER + "self_attn.o_proj.weight",
        (_ATTENTION + "linear_proj.weight",),
        ("hidden", "query"),
        1,
    ),
    Row(
        _LAYER + "post_attention_layernorm.weight",
        (_CHUNK + "pre_mlp_layernorm.weight", _FC1 + "layer_norm_weight"),
        ("hidden",),
        None,
    ),
    Row(_LAYER + "mlp.gate_proj.weight", (_FC1 + "weight",), ("ffn", "hidden"), 0, Part.GATE),
    Row(_LAYER + "mlp.up_proj.weight", (_FC1 + "weight",), ("ffn", "hidden"), 0, Part.UP),
    Row(_LAYER + "mlp.down_proj.weight", (_CHUNK + "mlp.linear_fc2.weight",), ("hidden", "ffn"), 1),
    Row("model.norm.weight", ("decoder.final_layernorm.weight",), ("hidden",), None),
    Row(HEAD, ("output_layer.weight",), ("vocab", "hidden"), 0),
    Row(SCORE, ("score.weight",), ("scores", "hidden"), None),
)


@dataclass(frozen=True)
class Placement:
    """The place of one HF tensor's local share: `view` of the parameter, and `local_shape`, its shape as HF rows."""

    name: str
    shape: Shape
    split: int | None
    local_shape: Shape
    view: torch.Tensor

    def bounds(self, rank: int) -> tuple[int, int]:
        """Returns [start, stop) of tensor-parallel `rank`'s share along `split`.

        Rows of the view beyond it are padding.
        """
        if self.split is None:
            return 0, self.shape[0]
        local, full = self.local_shape[self.split], self.shape[self.split]
        return min(rank * local, full), min((rank + 1) * local, full)


def tensor_shapes(arch: Architecture) -> dict[str, Shape]:
    """Returns every tensor of the HF model with its shape, in layer order. A tied model has no `lm_head.weight`."""
    sizes, absent = _sizes(arch), {SCORE} if arch.head == "language" else {HEAD}
    if arch.tie_word_embeddings:
        absent.add(HEAD)
    return {
        row.hf.format(i=layer): tuple(sizes[d] for d in row.shape)
        for row, layer, _ in _expand(list(range(arch.num_hidden_layers)))
        if row.hf not in absent and _has(arch, row)
    }


def unwrap(chunk: Any) -> Any:
    """Returns the PolicyModel or RewardModel inside data-parallel or precision wrappers."""
    while not hasattr(chunk, "decoder"):
        chunk = chunk.module
    return chunk


def placements(chunk: torch.nn.Module, arch: Architecture) -> list[Placement]:
    """Returns the HF tensors of which this rank's chunk holds a share. They cover every parameter of the chunk.

    The copy of a tied embedding that the last pipeline stage holds is listed under the embedding's name.
    """
    model = unwrap(chunk)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes, covered, found = _sizes(arch), set(), []
    for row, layer, index in _expand([layer.layer_number - 1 for layer in model.decoder.layers]):
        name = next((n for n in (m.format(i=index) for m in row.megatron) if n in parameters), None)
        if name is None or not _has(arch, row):
            continue
        covered.add(name)
        hf = EMBEDDING if row.hf == HEAD and arch.tie_word_embeddings else row.hf.format(i=layer)
        shape = tuple(sizes[d] for d in row.shape)
        view = _view(parameters[name], row.part, arch)
        local = list(shape)
        if row.split is not None:
            local[row.split] = view.numel() // prod(s for dim, s in enumerate(shape) if dim != row.split)
        found.append(Placement(hf, shape, row.split, tuple(local), view))
    unknown = parameters.keys() - covered
    assert not unknown, f"the name table does not know {sorted(unknown)}"
    return found


def _expand(layers: list[int]) -> Iterator[tuple[Row, int, int]]:
    """Yields (row, global layer, layer within the chunk), layer by layer.

    Rows outside the layers come once, with zeros.
    """
    for layered, rows in groupby(TABLE, lambda row: "{i}" in row.hf):
        group = list(rows)
        for index, layer in enumerate(layers if layered else [0]):
            yield from ((row, layer, index) for row in group)


def _has(arch: Architecture, row: Row) -> bool:
    """Returns whether the architecture's family has the tensors of a row."""
    return row.only is None or bool(getattr(arch.family, row.only))


def _sizes(arch: Architecture) -> dict[str, int]:
    return {
        "vocab": arch.vocab_size,
        "hidden": arch.hidden_size,
        "ffn": arch.intermediate_size,
        "query": arch.num_attention_heads * arch.head_size,
        "key_value": arch.num_key_value_heads * arch.head_size,
        "head": arch.head_size,
        "scores": 1,
    }


def _view(parameter: torch.Tensor, part: Part, arch: Architecture) -> torch.Tensor:
    """Returns the part's rows: [rows, …], or [groups, rows per group, …] where the parameter interleaves groups."""
    if part is Part.WHOLE:
        return parameter
    if part in (Part.GATE, Part.UP):
        return parameter.chunk(2)[part is Part.UP]
    head = arch.head_size
    queries = arch.num_attention_heads // arch.num_key_value_heads * head
    start, rows = {Part.QUERY: (0, queries), Part.KEY: (queries, head), Part.VALUE: (queries + head, head)}[part]
    return parameter.unflatten(0, (-1, queries + 2 * head)).narrow(1, start, rows)
