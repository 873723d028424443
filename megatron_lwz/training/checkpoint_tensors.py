"""Which blocks of a checkpoint's tensors this rank writes, and which it reads: views of the state, without a copy.

A checkpoint holds each weight under its name, and under `optimizer.state.<exp_avg | …>.` + name (optimizer.py: Held)
what the optimizer keeps of it, whole tensors that any layout cuts up in its own way. Frozen weights are in no checkpoint.
The ranks of a data-parallel group
divide what they all hold: each writes its part of the weights, and of the state of an optimizer that is not distributed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_lwz.distributed import groups
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.training.blocks import blocks
from megatron_lwz.training.optimizer import held, parts

Blocks = list[ShardedTensor]


@dataclass(frozen=True)
class _Range:
    """A range of the elements of one local tensor, as a flat view."""

    place: ShardedTensor | ShardedTensorFactory
    data: torch.Tensor
    begin: int = 0
    prefix: str = ""
    repeats: bool = False
    """Whether it is the fp32 weight itself, which the model's part of the checkpoint holds too."""

    def blocks(self) -> Iterator[ShardedTensor]:
        return blocks(self.place, self.data, self.begin, prefix=self.prefix)


def weights_to_read(policies: Sequence[PolicyModel]) -> Blocks:
    """Returns all weights of this rank."""
    return [block for found in _weights(policies) for block in found.blocks()]


def weights_to_write(policies: Sequence[PolicyModel]) -> Blocks:
    """Returns this rank's part of the weights. The parts of all ranks make up the model."""
    return [block for found in _own_part(_weights(policies)) for block in found.blocks()]


def optimizer_to_read(optimizer: MegatronOptimizer, policies: Sequence[PolicyModel], stored: Collection[str]) -> Blocks:
    """Returns all that this rank's optimizer holds; fp32 weights only if the checkpoint has masters: its names are `stored`.

    The masters of a bf16 run are exact, its weights are rounded.
    """
    found = (found for part in parts(optimizer) for found in _states(part, policies))
    return [block for one in found for block in one.blocks() if not one.repeats or block.key in stored]


def optimizer_to_write(optimizer: MegatronOptimizer, policies: Sequence[PolicyModel]) -> Blocks:
    """Returns this rank's part of the optimizer's state. The parts of all ranks make up the state."""
    found: Blocks = []
    for part in parts(optimizer):
        states = _states(part, policies)
        own = states if isinstance(part, DistributedOptimizer) else _own_part(states)
        found += [block for one in own if _is_main(one.place) and not one.repeats for block in one.blocks()]
    return found


def _weights(policies: Sequence[PolicyModel]) -> Iterator[_Range]:
    for place in _places(policies):
        yield _Range(place, place.data.detach().view(-1))


def _states(part: MegatronOptimizer, policies: Sequence[PolicyModel]) -> Iterator[_Range]:
    places = {id(place.data): place for place in _places(policies)}
    for found in held(part):
        for name, data in found.tensors.items():
            repeats = name == "param" and found.parameter.dtype == torch.float32
            yield _Range(places[id(found.parameter)], data, found.begin, f"optimizer.state.{name}.", repeats)


def _places(policies: Sequence[PolicyModel]) -> list[Any]:
    """Returns where each local weight that is trained belongs: all of them, or those of a policy's adapters.

    Object entries (Transformer Engine's fp8 scales, pickles) are left out.
    """
    found = (entry for policy in policies for entry in nested_values(policy.sharded_state_dict()))
    return [entry for entry in found if not isinstance(entry, ShardedObject) and entry.data.requires_grad]


def _is_main(place: ShardedTensor | ShardedTensorFactory) -> bool:
    """Whether this rank's data-parallel group writes the tensor, and no other group that holds the same."""
    return not any(place.replica_id[:-1])


def _own_part(ranges: Iterable[_Range]) -> Iterator[_Range]:
    """Yields this rank's part of what all ranks of its data-parallel group hold, of equal size on each."""
    ranges = [found for found in ranges if _is_main(found.place)]
    group = groups.data_context_group()
    total, begin = sum(found.data.numel() for found in ranges), 0
    first, last = (total * rank // group.size() for rank in (group.rank(), group.rank() + 1))
    for found in ranges:
        start, stop = max(first - begin, 0), min(last - begin, found.data.numel())
        if start < stop:
            yield replace(found, data=found.data[start:stop], begin=found.begin + start)
        begin += found.data.numel()
