"""What the loop asks of a transport, and what the transports ask of the engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.types import WeightVersion


class Transport(Protocol):
    """A way of the policy's weights to the engines. Every rank calls `prepare` and `push`. All raise LwzError."""

    def prepare(self, version: WeightVersion, *, folder: bool = False) -> WeightVersion:
        """Makes the weights ready; returns the version with their checksum where one was taken.

        `folder`: they must also lie in `folder(version)`, for others than the engines to read.
        """
        ...

    def folder(self, version: WeightVersion) -> Path:
        """Where the weights of a version lie that was prepared with a folder."""
        ...

    def push(self, version: WeightVersion) -> None:
        """Every engine takes the weights last prepared; running requests go on under the new version."""
        ...

    def verify(self, version: WeightVersion) -> None:
        """Compares what the engines run with what was pushed. Raises EngineError for the first that differs."""
        ...

    def close(self) -> None:
        """Lets go of what connects trainer and engines."""
        ...


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

    def weight_checksum(self) -> Mapping[str, str]:
        """URL of each engine → checksum (hex) of the weights it runs, as `models.hf.checksum_folder` computes it."""
        ...

    def wake(self, part: str) -> None:
        """Engines that sleep take memory again, for `weights` or for the `kv_cache`."""
        ...

    def sleep(self) -> None:
        """Every engine leaves its GPU. No request may be running."""
        ...
