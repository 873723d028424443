"""What the trainer may ask of rank 0's rollout service, wherever that runs.

`RolloutHost` (host.py) does it, in the trainer's process or in one of its own. There the calls cross a socket: `signatures` reads
their types from the protocol, so that stub (remote.py) and service (service.py) need no list of their own.
"""

from __future__ import annotations

import inspect
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args, get_origin, get_type_hints

from typing_extensions import is_protocol

from megatron_lwz.evaluation.in_loop import Metrics
from megatron_lwz.orchestrator.experience import Experience
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.progress import Progress
from megatron_lwz.types import WeightVersion

Waiting = Callable[[Progress], None]
"""Is called with how far awaited rollouts are."""


class EngineControl(Protocol):
    """All engines of a run, addressed together; every call returns when all have answered, or raises EngineError."""

    def push_weights(self, path: Path, version: WeightVersion) -> None:
        """Each engine holds its requests between two tokens, loads a Hugging Face folder that it can read, and goes on.

        From then on its tokens carry this version; prefix caches are dropped.
        """
        ...

    def push_together(self, version: WeightVersion, send: Callable[[Sequence[EngineClient]], None]) -> None:
        """Calls `send` with those that answer; afterwards they have the weights, and others lack them until the next push."""
        ...

    def name_weights(self, url: str, version: WeightVersion) -> None:
        """Tokens that one engine writes from now on carry this version."""
        ...

    def read_up(self, url: str, since: float) -> None:
        """Returns when everything that one engine, paused at `since` (monotonic seconds), had sent is read."""
        ...

    def weight_checksum(self) -> Mapping[str, str]:
        """URL of each engine → checksum (hex) of the weights it runs, as `models.hf.checksum_folder` computes it."""
        ...

    def wake(self, part: str) -> None:
        """Engines that sleep take memory again, for `weights` or for the `kv_cache`."""
        ...

    def sleep(self) -> None:
        """Every engine leaves its GPU. No request may be running."""
        ...


class Host(Protocol):
    """Rank 0's rollout service. The training loop calls it from one thread. Every call may raise LwzError."""

    engines: EngineControl
    """All engines, once connected."""

    def connect(self, version: WeightVersion, folder: Path) -> None:
        """Starts or meets the engines with the weights in `folder`, recovers the journal, and begins to write rollouts."""
        ...

    def set_version(self, version: WeightVersion) -> None:
        """The engines run these weights from now on."""
        ...

    def experience(self, step: int) -> Iterator[Experience]:
        """Admits prompts as far ahead as allowed, waits for the step's groups, and yields them as one batch or in parts."""
        ...

    def trained(self, step: int) -> None:
        """The update to `step` used the batch yielded last."""
        ...

    def settle(self) -> None:
        """Returns when the last `trained` is durable."""
        ...

    def checkpointed(self, step: int) -> None:
        """The checkpoint of `step` is on disk: what it was trained on will not come back after a kill."""
        ...

    def lengths(self, step: int) -> Metrics:
        """Metrics `length/…` of `step`, now trained; may log a warning."""
        ...

    def take_up_evaluations(self, version: WeightVersion, folder: Path) -> None:
        """Resumes evaluations that an earlier attempt left. `version` and `folder`: the weights pushed last."""
        ...

    def evaluate(self, version: WeightVersion, folder: Path) -> None:
        """Begins to evaluate these weights on the held-out prompts; returns when training may go on."""
        ...

    def evaluated(self) -> Iterator[tuple[int, Metrics]]:
        """(step, metrics) of each finished evaluation, once. Asking for the next one confirms that the last is recorded."""
        ...

    def finish_evaluations(self) -> None:
        """Waits for all evaluations that were begun."""
        ...


@dataclass(frozen=True)
class Signature:
    """The types of one call. `streams`: it returns an iterator, and `result` is the type of its items."""

    parameters: tuple[Any, ...]
    result: Any
    streams: bool = False


def callback_kinds(kind: Any) -> list[Any] | None:
    """The types of what a callback takes; None if `kind` is not a function."""
    return list(get_args(kind)[0]) if get_origin(kind) is abc.Callable else None


def signatures(protocol: type) -> dict[str, Signature]:
    """Name → types of every method of a protocol; those of an attribute that is a protocol itself as `attribute.method`."""
    found: dict[str, Signature] = {}
    for attribute, kind in get_type_hints(protocol).items():
        if is_protocol(kind):
            found |= {f"{attribute}.{name}": signature for name, signature in signatures(kind).items()}
    for name, method in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith("_"):
            hints = get_type_hints(method)
            result = hints.pop("return")
            streams = get_origin(result) is abc.Iterator
            found[name] = Signature(tuple(hints.values()), get_args(result)[0] if streams else result, streams)
    return found
