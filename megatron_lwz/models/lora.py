"""Low-rank adapters (LoRA, arXiv 2106.09685) in Megatron's linear layers: x → W x + alpha / rank · B A x, W frozen.

An adapter belongs to one module of Hugging Face's model, as in peft, although Megatron holds query, key and value in one
layer, and gate and up in another: A [r, in] is a module's own, and B [out, r] has its rows in Hugging Face's order.
Under tensor parallelism a layer that is split along its output splits B and repeats A, one split along its input splits
A and repeats B, so a rank's share of B A is its share of the module's weight. Only z = A x [T, r] passes between ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from megatron_lwz.config.sections import LoraSection
from megatron_lwz.distributed import megatron_version
from megatron_lwz.models.hf.name_map import LORA


class Adapter(torch.nn.Module):
    """This rank's shares of A [r, in] and B [out, r] of one module, not initialised. `split`: which of them is one."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, *, split: str, config: Any) -> None:
        super().__init__()
        self.scale = scale
        self.A = _parameter(rank, inputs, config)
        self.B = _parameter(outputs, rank, config)
        shared, own, dimension = (self.A, self.B, 0) if split == "B" else (self.B, self.A, 1)
        set_tensor_model_parallel_attributes(own, True, dimension, 1)
        # Under sequence parallelism the ranks see different tokens: Megatron then sums this gradient over them.
        shared.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Places:
    """Which modules a layer's output [T, 1, N] holds: `groups` times one after the other, of so many rows each."""

    groups: int
    parts: Sequence[tuple[str, int]]
    """(module, its rows in a group)"""


class AdaptedColumnParallelLinear(ColumnParallelLinear):
    """A layer that is split along its output, with adapters of some of the modules that it holds."""

    def __init__(self, *args: Any, lora: LoraSection, places: Places, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.active = True
        self._places = places
        self.lora = torch.nn.ModuleDict()
        for module, rows in places.parts:
            if rank := lora.rank_of(module):
                size, scale = places.groups * rows, lora.scale_of(module)
                self.lora[module] = Adapter(self.input_size, size, rank, scale, split="B", config=self.config)

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[T (/ TP), 1, in] → [T, 1, out / TP]."""
        output, bias = super().forward(input_, *args, **kwargs)
        return (output + self._update(input_), bias) if self.active else (output, bias)

    def _update(self, input_: Tensor) -> Tensor:
        adapters: dict[str, Any] = dict(self.lora.items())
        z = F.linear(input_, torch.cat([adapter.A for adapter in adapters.values()]))
        if self.sequence_parallel:
            z = gather_from_sequence_parallel_region(z, tensor_parallel_output_grad=True, group=self.tp_group)
        else:
            z = copy_to_tensor_model_parallel_region(z, group=self.tp_group)
        pieces = z.split([len(adapter.A) for adapter in adapters.values()], -1)
        updates = {
            module: F.linear(piece * adapter.scale, adapter.B)
            for (module, adapter), piece in zip(adapters.items(), pieces, strict=True)
        }
        groups = self._places.groups
        parts = [
            updates[module].unflatten(-1, (groups, rows))
            if module in updates
            else z.new_zeros(*z.shape[:-1], groups, rows)
            for module, rows in self._places.parts
        ]
        return torch.cat(parts, -1).flatten(-2)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Adds the adapters: A whole, B split along its rows."""
        return _sharded(self, {"weight": 0, "bias": 0}, {"B": 0}, prefix, sharded_offsets, metadata)


class AdaptedRowParallelLinear(RowParallelLinear):
    """A layer that is split along its input, with the adapter of the module that it is."""

    def __init__(self, *args: Any, lora: LoraSection, module: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.active = True
        rank, scale = lora.rank_of(module), lora.scale_of(module)
        made = Adapter(self.input_size_per_partition, self.output_size, rank, scale, split="A", config=self.config)
        self.lora = torch.nn.ModuleDict({module: made})

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[T, 1, in / TP] → [T (/ TP), 1, out]."""
        output, bias = super().forward(input_)
        return (output + self._update(input_), bias) if self.active else (output, bias)

    def _update(self, input_: Tensor) -> Tensor:
        adapter: Any = next(iter(self.lora.values()))
        z = F.linear(input_, adapter.A)
        if self.sequence_parallel:
            z = reduce_scatter_to_sequence_parallel_region(z, group=self.tp_group)
        else:
            z = reduce_from_tensor_model_parallel_region(z, group=self.tp_group)
        return F.linear(z * adapter.scale, adapter.B)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Adds the adapter: A split along its columns, B whole."""
        return _sharded(self, {"weight": 1}, {"A": 1}, prefix, sharded_offsets, metadata)


_Adapted = AdaptedColumnParallelLinear | AdaptedRowParallelLinear


def adapt(layer: Any, lora: LoraSection, settings: TransformerConfig) -> None:
    """Puts the adapters into the submodules of a layer of Megatron's own linear layers."""
    tensor = settings.tensor_model_parallel_size
    heads = settings.num_query_groups // tensor
    queries = settings.num_attention_heads // settings.num_query_groups * settings.kv_channels
    qkv = Places(heads, [("q_proj", queries), ("k_proj", settings.kv_channels), ("v_proj", settings.kv_channels)])
    rows = settings.ffn_hidden_size // tensor
    fc1 = Places(1, [("gate_proj", rows), ("up_proj", rows)])
    attention, mlp = layer.self_attention.submodules, megatron_version.mlp_submodules(layer)
    for parts, name, places in ((attention, "linear_qkv", qkv), (mlp, "linear_fc1", fc1)):
        if any(lora.rank_of(module) for module, _ in places.parts):
            made = ModuleSpec(AdaptedColumnParallelLinear, params={"lora": lora, "places": places})
            setattr(parts, name, made)
    for parts, name, module in ((attention, "linear_proj", "o_proj"), (mlp, "linear_fc2", "down_proj")):
        if lora.rank_of(module):
            setattr(parts, name, ModuleSpec(AdaptedRowParallelLinear, params={"lora": lora, "module": module}))


def freeze(policy: Any) -> None:
    """Leaves the adapters alone to be trained."""
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(LORA in name)
    if policy.config.recompute_granularity is not None and policy.pre_process:
        # What is recomputed has a gradient only if its input has one, and of a frozen embedding comes none.
        policy.embedding.register_forward_hook(_with_gradient)


def switch(policies: Iterable[torch.nn.Module], *, on: bool) -> None:
    """Makes policies compute with their adapters, or as their frozen base. Those without adapters stay as they are."""
    for policy in policies:
        for module in policy.modules():
            if isinstance(module, _Adapted):
                module.active = on


def _with_gradient(_module: torch.nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.detach().requires_grad_() if torch.is_grad_enabled() else output


def _parameter(rows: int, columns: int, config: TransformerConfig) -> torch.nn.Parameter:
    device = torch.cuda.current_device()
    return torch.nn.Parameter(torch.empty(rows, columns, dtype=config.params_dtype, device=device))


def _sharded(
    layer: Any, axes: dict[str, int], of_adapter: dict[str, int], prefix: str, offsets: Any, metadata: Any
) -> dict[str, Any]:
    axes = axes | {f"lora.{module}.{name}": axis for module in layer.lora for name, axis in of_adapter.items()}
    state = layer.state_dict(prefix="", keep_vars=True)
    groups = {"tp_group": layer.tp_group, "dp_cp_group": metadata["dp_cp_group"]}
    return make_sharded_tensors_for_checkpoint(state, prefix, axes, offsets, **groups)
