"""One table between Hugging Face's Qwen tensors and Megatron's parameters, used in both directions.

A row says where the tensor-parallel share of one HF tensor lies inside a local Megatron parameter. That share is always
a slice of the HF tensor along one dimension, and always a view of the parameter. So loading copies slice → view, and
exporting gathers the views along the same dimension. The special cases follow from this rule:

- `linear_qkv` holds, per key-value group, the group's query heads, its key head, its value head;
- `linear_fc1` holds the rank's gate rows, then its up rows;
- the embedding and the head have padding rows past the true vocabulary: they are outside the HF tensor and stay zero.

A policy ends in `lm_head`, a reward model in `score`; the rest of the table is the same for both. Rows that only some
families have name the property of `config.families.Family` that says which.

The adapters of a policy with LoRA have rows of their own, which follow from those of their modules. Their names are peft's.
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
from megatron_lwz.config.sections import LoraSection

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

LORA = ".lora."
"""Part of the name of each parameter of an adapter, after its layer's name and before the module's."""
_PEFT = "base_model.model."

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
class Update:
    """This rank's share of what LoRA adds to a tensor: scale · B A, B [rows, r] and A [r, columns]."""

    scale: float
    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True)
class Placement:
    """The place of one HF tensor's local share: `view` of the parameter, and `local_shape`, its shape as HF rows."""

    name: str
    shape: Shape
    split: int | None
    local_shape: Shape
    view: torch.Tensor
    update: Update | None = None

    def merged(self) -> torch.Tensor:
        """Returns the share [local_shape] with its update, in fp32 if it has one."""
        rows = self.view.reshape(self.local_shape)
        if self.update is None:
            return rows
        return rows.float().addmm(self.update.b.float(), self.update.a.float(), alpha=self.update.scale)

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


def adapter_shapes(arch: Architecture, lora: LoraSection) -> dict[str, Shape]:
    """Returns every tensor of the policy's adapters with its shape, in layer order, under peft's names."""
    return {
        row.hf.format(i=layer): _adapter_shape(row, arch, lora)
        for row, layer, _ in _expand(list(range(arch.num_hidden_layers)), adapter_rows(lora))
    }


def adapter_rows(lora: LoraSection) -> tuple[Row, ...]:
    """Returns the rows of the adapters. A [r, in] is split where its module is split along its input, B [out, r] else."""
    found: list[Row] = []
    for row in TABLE:
        module = module_of(row.hf)
        if lora.rank_of(module) and row.hf.endswith(".weight"):
            stem, layer = row.hf.removesuffix("weight"), row.megatron[0].removesuffix("weight")
            for name, sizes, split in (("A", ("rank", row.shape[1]), 1), ("B", (row.shape[0], "rank"), 0)):
                hf, megatron = f"{_PEFT}{stem}lora_{name}.weight", f"{layer}lora.{module}.{name}"
                found.append(Row(hf, (megatron,), sizes, split if row.split == split else None))
    return tuple(found)


def module_of(name: str) -> str:
    """Returns the module of a tensor or parameter: `q_proj` of `….q_proj.weight`, and of `….q_proj.lora_A.weight`."""
    return name.replace(".lora_A", "").replace(".lora_B", "").split(".")[-2]


def unwrap(chunk: Any) -> Any:
    """Returns the PolicyModel or RewardModel inside data-parallel or precision wrappers."""
    while not hasattr(chunk, "decoder"):
        chunk = chunk.module
    return chunk


def placements(chunk: torch.nn.Module, arch: Architecture) -> list[Placement]:
    """Returns the HF tensors of which this rank's chunk holds a share. They cover every parameter but the adapters'.

    The copy of a tied embedding that the last pipeline stage holds is listed under the embedding's name.
    """
    model = unwrap(chunk)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes, found = _sizes(arch), []
    covered = {name for name in parameters if LORA in name}
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
        found.append(Placement(hf, shape, row.split, tuple(local), view, _update(model, name, row, parameters)))
    unknown = parameters.keys() - covered
    assert not unknown, f"the name table does not know {sorted(unknown)}"
    return found


def adapter_placements(chunk: torch.nn.Module, arch: Architecture) -> list[Placement]:
    """Returns the tensors of adapters, under peft's names, of which this rank's chunk holds a share."""
    model, found = unwrap(chunk), []
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    layers = [layer.layer_number - 1 for layer in model.decoder.layers]
    for row, layer, index in _expand(layers, adapter_rows(model.lora)):
        view = parameters[row.megatron[0].format(i=index)]
        shape = _adapter_shape(row, arch, model.lora)
        found.append(Placement(row.hf.format(i=layer), shape, row.split, tuple(view.shape), view))
    return found


def _adapter_shape(row: Row, arch: Architecture, lora: LoraSection) -> Shape:
    sizes = _sizes(arch) | {"rank": lora.rank_of(module_of(row.hf))}
    return tuple(sizes[d] for d in row.shape)


def _update(model: Any, name: str, row: Row, parameters: dict[str, torch.Tensor]) -> Update | None:
    """Returns what LoRA adds to the row's tensor, which lies in the parameter `name`."""
    lora: LoraSection | None = getattr(model, "lora", None)
    module = module_of(row.hf) if row.hf.endswith(".weight") else ""
    if lora is None or not lora.rank_of(module):
        return None
    stem = f"{name.removesuffix('.weight')}{LORA}{module}."
    return Update(lora.scale_of(module), parameters[stem + "A"], parameters[stem + "B"])


def _expand(layers: list[int], table: tuple[Row, ...] = TABLE) -> Iterator[tuple[Row, int, int]]:
    """Yields (row, global layer, layer within the chunk), layer by layer.

    Rows outside the layers come once, with zeros.
    """
    for layered, rows in groupby(table, lambda row: "{i}" in row.hf):
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
