"""What the loop asks of a transport."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

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
