"""A rollout process whose host answers every call with a sample: `python -m tests.unit.orchestrator.echo_host --socket FD`.

It checks that what it is called with is a sample too. After `checkpointed(FAIL)` every call raises a DataError that names it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from megatron_lwz.distributed import termination
from megatron_lwz.errors import DataError
from megatron_lwz.orchestrator.connection import Connection
from megatron_lwz.orchestrator.experience import Experience
from megatron_lwz.orchestrator.protocol import Host, Signature, callback_kinds, signatures
from megatron_lwz.orchestrator.service import HostService
from megatron_lwz.profiling.spans import Span
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.types import SequenceBatch, WeightVersion

FAIL = -1
ITEMS = 2
"""Of every stream."""


def sample(kind: Any) -> Any:
    """A value of a type that calls of a Host have; the same each time."""
    metrics = {"length/mean": 0.1, "gap": 3.0}
    plain = {None: None, type(None): None, bool: True, int: 7, float: 0.25, str: "kv_cache", Path: Path("a/b.c")}
    if kind in plain:
        return plain[kind]
    if kind is WeightVersion:
        return WeightVersion(4, 1, "c0ffee")
    if kind in (dict[str, float], Mapping[str, float]):
        return metrics
    if kind == Mapping[str, str]:
        return {"http://127.0.0.1:1": "abc"}
    if kind == tuple[int, dict[str, float]]:
        return (7, metrics)
    if kind is Experience:
        return Experience(batch(), metrics, last=False)
    if kind == list[Span]:
        return [Span("engine http://127.0.0.1:1", "rollout 3-1", 5, 9, {"tokens": 2.0})]
    if kind == Sequence[EngineClient]:
        return [EngineClient(f"http://127.0.0.1:{port}", None) for port in (1, 2)]
    raise TypeError(f"no sample of {kind}: add one")


def batch() -> SequenceBatch:
    return SequenceBatch(
        tokens=torch.arange(5),
        offsets=torch.tensor([0, 2, 5]),
        prompt_lengths=torch.tensor([1, 1]),
        behaviour_logprobs=torch.tensor([0.0, -1.5, 0.0, -0.1, -0.2]),
        advantages=torch.tensor([0.5, -0.5]),
        weights=torch.tensor([1.0, 0.0]),
    )


def plain(value: Any) -> Any:
    """With its types; to be compared."""
    if isinstance(value, EngineClient):
        return value.url
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape, value.tolist())
    if isinstance(value, Experience | SequenceBatch | Span):
        return {name: plain(part) for name, part in vars(value).items()}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return (type(value), value)


class Echo:
    """Answers any call of a Host."""

    def __init__(self) -> None:
        self.failing = False
        for name, signature in signatures(Host).items():
            owner, _, method = name.rpartition(".")
            if owner and not hasattr(self, owner):
                setattr(self, owner, SimpleNamespace())
            setattr(attrgetter(owner)(self) if owner else self, method, partial(self._call, name, signature))

    def _call(self, name: str, signature: Signature, *values: Any) -> Any:
        self.failing |= name == "checkpointed" and values == (FAIL,)
        if self.failing:
            raise DataError(name, "fails")
        for value, kind in zip(values, signature.parameters, strict=True):
            if (kinds := callback_kinds(kind)) is not None:
                value(*map(sample, kinds))
            else:
                assert plain(value) == plain(sample(kind)), (name, value)
        return iter([sample(signature.result)] * ITEMS) if signature.streams else sample(signature.result)


def main(number: int) -> None:
    with termination.watched(forced=lambda: None), suppress(termination.Terminated):
        HostService(Echo, Connection(socket.socket(fileno=number))).run()


if __name__ == "__main__":
    main(int(sys.argv[2]))
