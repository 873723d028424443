"""The calls that the trainer may make to rank 0's rollout service, in whichever process that runs.

`RolloutHost` (host.py) implements them, in the trainer's process or in a separate one. In the second case the calls go
over a socket. `signatures` reads their types from the protocol, so that stub (remote.py) and service (service.py) need
no list of calls.
"""

from __future__ import annotations

import inspect
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import GenericAlias
from typing import Any, Protocol, get_args, get_origin, get_type_hints

from typing_extensions import is_protocol

from megatron_lwz.evaluation.in_loop import Metrics
from megatron_lwz.orchestrator.experience import Experience
from megatron_lwz.profiling.spans import Span
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.progress import Progress
from megatron_lwz.types import WeightVersion

Waiting = Callable[[Progress], None]
"""Function that is called with the progress of awaited rollouts. It may raise Interrupted, which ends the wait."""


class EngineControl(Protocol):
    """All engines of a run, addressed together. Every call returns when all have answered, or raises EngineError."""

    def push_weights(self, path: Path, version: WeightVersion) -> None:
        """Makes each engine pause its requests between two tokens, load the Hugging Face folder at `path`, and resume.

        The engines must be able to read the folder. Tokens generated afterwards carry this version; prefix caches are
        dropped.
        """
        ...

    def push_together(self, version: WeightVersion, send: Callable[[Sequence[EngineClient]], None]) -> None:
        """Calls `send` with the engines that answer. Afterwards these have the weights.

        The other engines lack the weights until the next weight sync.
        """
        ...

    def name_weights(self, url: str, version: WeightVersion) -> None:
        """Sets the version of all tokens that one engine generates from now on."""
        ...

    def read_up(self, url: str, since: float) -> None:
        """Returns when everything is read that one engine, paused at `since` (monotonic seconds), had sent."""
        ...

    def weight_checksum(self) -> Mapping[str, str]:
        """Returns URL of each engine → checksum (hex) of its weights, computed as in `models.hf.checksum_folder`."""
        ...

    def wake(self, part: str) -> None:
        """Makes sleeping engines allocate memory again, for `weights` or for the `kv_cache`."""
        ...

    def sleep(self) -> None:
        """Makes every engine release its GPU memory. No request may be running."""
        ...


class Host(Protocol):
    """Rank 0's rollout service. The training loop calls it from one thread. Every call may raise LwzError."""

    engines: EngineControl
    """All engines, once connected."""

    def connect(self, version: WeightVersion, folder: Path) -> None:
        """Starts or connects the engines with the weights in `folder`, recovers the journal, and begins rollouts."""
        ...

    def set_version(self, version: WeightVersion) -> None:
        """Records that the engines run these weights from now on."""
        ...

    def experience(self, step: int) -> Iterator[Experience]:
        """Admits prompts as far ahead as allowed, waits for the step's groups, and yields one batch or its parts.

        Raises Interrupted if the Waiting function does.
        """
        ...

    def record(self, on: bool) -> list[Span]:
        """Turns on or off whether what engines and rewards do is recorded. Returns what was recorded until now."""
        ...

    def halt(self) -> None:
        """Ends all requests of rollouts, for good. Their tokens are kept, and a later process continues from them."""
        ...

    def trained(self, step: int) -> None:
        """Records that the update to `step` used the batch yielded last."""
        ...

    def settle(self) -> None:
        """Returns when the last `trained` record is durable."""
        ...

    def checkpointed(self, step: int) -> None:
        """Records that the checkpoint of `step` is on disk, so its training data is not needed again after a kill."""
        ...

    def lengths(self, step: int) -> Metrics:
        """Returns the metrics `length/…` of `step`, which is now trained. May log a warning."""
        ...

    def take_up_evaluations(self, version: WeightVersion, folder: Path) -> None:
        """Resumes evaluations that an earlier attempt left unfinished.

        `version` and `folder`: the weights pushed last.
        """
        ...

    def evaluate(self, version: WeightVersion, folder: Path) -> None:
        """Begins an evaluation of these weights on the held-out prompts. Returns when training may continue."""
        ...

    def evaluated(self) -> Iterator[tuple[int, Metrics]]:
        """Yields (step, metrics) of each finished evaluation once.

        A request for the next one confirms that the previous one is recorded.
        """
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

    @property
    def following(self) -> Any:
        """The type of the answer to a request for the next item: a list of one item, empty after the last."""
        return GenericAlias(list, (self.result,))


def callback_kinds(kind: Any) -> list[Any] | None:
    """Returns the types of a callback's parameters; None if `kind` is not a function."""
    return list(get_args(kind)[0]) if get_origin(kind) is abc.Callable else None


def signatures(protocol: type) -> dict[str, Signature]:
    """Returns name → types of every method of a protocol. Methods of an attribute are named `attribute.method`.

    This applies to attributes that are protocols themselves.
    """
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
