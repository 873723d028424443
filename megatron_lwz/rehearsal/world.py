"""This process as one rank of a layout whose other ranks do not exist: torch's fake process group.

Its collectives return at once, with whatever their outputs held. What the host learns from other ranks is replaced by
what this rank would have said.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_lwz.distributed import environment, exchange, groups
from megatron_lwz.models.hf import export


class _Done:
    """A collective that has finished."""

    def wait(self) -> None: ...


def join(rank: int, world: int, *, told: Any = None) -> None:
    """Makes this process rank `rank` of `world` until it ends. `told` is what other ranks broadcast as JSON."""
    environment.take_place(rank, world)
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    new_group = dist.new_group

    def fake_group(*args: Any, **options: Any) -> Any:
        return new_group(*args, **{**options, "backend": "fake", "pg_options": None})

    def gather_objects(found: list[Any], mine: Any, group: Any = None) -> None:
        found[:] = [mine] * len(found)

    def broadcast_json(value: Any = None, *, source: int = 0, group: object = None) -> Any:
        return value if source == rank else copy.copy(told)

    @contextmanager
    def one_by_one(*_: Any, **__: Any) -> Iterator[_Done]:
        yield _Done()  # the collectives of the block run singly: coalesced ones have no FakeTensor form

    buckets: Any = importlib.import_module("megatron.core.distributed.param_and_grad_buffer")
    buckets._coalescing_manager = one_by_one
    distributed: Any = dist
    distributed.new_group = fake_group
    distributed.all_gather_object = gather_objects
    exchange.broadcast_json = broadcast_json
    exchange.from_rank_zero = lambda work: work()
    _give_owners_to_tensors()


def _give_owners_to_tensors() -> None:
    """Makes another pipeline stage the owner of each tensor that this one does not hold: the others name theirs."""
    find = export._owners

    def owners(held: Any, names: Sequence[str]) -> list[int]:
        stage, stages = groups.pipeline_group().rank(), groups.pipeline_group().size()
        other = 0 if stage else stages - 1
        return [owner if owner < stages else other for owner in find(held, names)]

    export._owners = owners
