"""Loads the local shards of a policy, in any tensor, pipeline and virtual-pipeline layout."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from megatron_lwz.config import Architecture
from megatron_lwz.distributed import exchange, groups, heartbeat
from megatron_lwz.errors import CheckpointError
from megatron_lwz.models.hf.folder import HfFolder
from megatron_lwz.models.hf.name_map import (
    EMBEDDING,
    HEAD,
    SCORE,
    Placement,
    Shape,
    adapter_placements,
    placements,
    tensor_shapes,
    unwrap,
)
from megatron_lwz.models.hf.tensors import is_finite, not_finite

log = logging.getLogger(__name__)

__all__ = ["HfFolder", "NewAdapter", "NewHead", "RandomInit", "TensorSource", "load_adapter", "load_policy"]


class TensorSource(Protocol):
    """A source of weights, addressed by HF tensor name. `place` names it in errors."""

    @property
    def place(self) -> str:
        """The folder, or what else the weights come from."""
        ...

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raises CheckpointError unless the source holds exactly these tensors."""
        ...

    def fault(self, part: int, parts: int) -> str | None:
        """Returns what is wrong with the tensors that part `part` of `parts` has to check, None if nothing is."""
        ...

    def read(self, name: str, shape: Shape, split: int | None = None, bounds: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Returns the tensor of `shape`, or its slice [start, stop) = `bounds` along dimension `split`, on the CPU."""
        ...


class RandomInit:
    """New weights: normal(0, initializer_range), output projections divided by √(2 · layers), biases 0, norms 1.

    Every tensor has its own random stream, seeded by `seed` and its name, so the layout does not change the model.
    """

    place = "a random init"

    def __init__(self, arch: Architecture, seed: int) -> None:
        self._arch = arch
        self._seed = seed

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Accepts any shapes: every tensor can be drawn."""

    def fault(self, part: int, parts: int) -> str | None:
        """Returns None: nothing is stored."""
        return None

    def read(self, name: str, shape: Shape, split: int | None = None, bounds: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Draws the whole tensor in fp32 and returns the slice."""
        if name.endswith(".bias"):
            whole = torch.zeros(shape)
        elif name.endswith("norm.weight"):
            whole = torch.ones(shape)
        else:
            std = self._arch.initializer_range
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * self._arch.num_hidden_layers)
            whole = torch.empty(shape).normal_(0.0, std, generator=_generator(self._seed, name))
        return _share(whole, split, bounds)


class NewAdapter:
    """A new LoRA adapter, as peft draws it: A uniform within ± 1 / √columns, B 0, so that it changes nothing yet.

    Every tensor has its own random stream, seeded by `seed` and its name.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def read(self, name: str, shape: Shape, split: int | None = None, bounds: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Draws the whole tensor in fp32 and returns the slice."""
        whole = torch.zeros(shape)
        if name.endswith("lora_A.weight"):
            bound = 1 / math.sqrt(shape[1])
            whole.uniform_(-bound, bound, generator=_generator(self._seed, name))
        return _share(whole, split, bounds)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _share(whole: torch.Tensor, split: int | None, bounds: tuple[int, int]) -> torch.Tensor:
    return whole if split is None else whole.narrow(split, bounds[0], bounds[1] - bounds[0])


class NewHead:
    """A policy's trunk with a new scalar head: all tensors of `folder` but the output layer, and a drawn `score`."""

    def __init__(self, folder: HfFolder, fresh: RandomInit) -> None:
        self.place = folder.place
        self._folder = folder
        self._fresh = fresh

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raises CheckpointError unless the folder holds a language model with this trunk."""
        trunk = {name: shape for name, shape in shapes.items() if name != SCORE}
        if HEAD in self._folder.names():
            trunk[HEAD] = shapes[EMBEDDING]
        self._folder.check(trunk)

    def fault(self, part: int, parts: int) -> str | None:
        """Checks the folder."""
        return self._folder.fault(part, parts)

    def read(self, name: str, shape: Shape, split: int | None = None, bounds: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Returns the folder's tensor, or a drawn one for the head."""
        return (self._fresh if name == SCORE else self._folder).read(name, shape, split, bounds)


@torch.no_grad()
def load_policy(
    chunks: Sequence[torch.nn.Module], source: TensorSource, *, verify: bool = True, finite: bool = False
) -> None:
    """Copies this rank's share of every tensor into `chunks` (bare or wrapped), cast to the parameters' type.

    Reads only this rank's shares, and with `verify` first compares the tensors with the checksums beside them, if there are
    some; the ranks divide them. Padding rows of the vocabulary become 0. Weights that are NaN or infinite are loaded with a
    warning, or refused with `finite`. Collective. Raises CheckpointError, on every rank alike.
    An optimizer that already holds fp32 masters must reload them afterwards (`reload_model_params`).
    """
    arch = unwrap(chunks[0]).arch
    source.check(tensor_shapes(arch))
    if verify:
        _check_sums(source)
    poisoned = None
    for chunk in chunks:
        for placement in placements(chunk, arch):
            heartbeat.moved()
            _fill(placement, source, groups.tensor_group().rank())
            if poisoned is None and not is_finite(placement.view):
                poisoned = not_finite(placement.name)
    said = exchange.first_said(poisoned)
    if said is not None and finite:
        raise CheckpointError(source.place, said)
    if said is not None and groups.is_rank_zero():
        log.warning("%s: %s", source.place, said)


@torch.no_grad()
def load_adapter(chunks: Sequence[torch.nn.Module], source: NewAdapter) -> None:
    """Copies this rank's share of every tensor of the policy's adapters into `chunks`."""
    for chunk in chunks:
        for placement in adapter_placements(chunk, unwrap(chunk).arch):
            _fill(placement, source, groups.tensor_group().rank())


def _check_sums(source: TensorSource) -> None:
    try:
        fault = source.fault(dist.get_rank(), dist.get_world_size())
    except CheckpointError as error:
        fault = error.advice
    said = exchange.first_said(fault)
    if said is not None:
        raise CheckpointError(source.place, said)


def _fill(placement: Placement, source: TensorSource | NewAdapter, rank: int) -> None:
    start, stop = placement.bounds(rank)
    piece = source.read(placement.name, placement.shape, placement.split, (start, stop))
    if tuple(piece.shape) == placement.local_shape:
        placement.view.copy_(piece.reshape(placement.view.shape))
        return
    placement.view.zero_()  # only the vocabulary is padded, and its views have the tensor's own dimensions
    placement.view[: stop - start].copy_(piece)
