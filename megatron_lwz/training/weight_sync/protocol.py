"""The interface between the main loop and a weight transport."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from megatron_lwz.types import WeightVersion


class Transport(Protocol):
    """Sends the policy's weights to the engines.

    Every rank calls `prepare` and `push`. All methods may raise LwzError.
    """

    def prepare(self, version: WeightVersion, *, folder: bool = False) -> WeightVersion:
        """Makes the weights ready; returns the version, with its checksum if one was computed.

        With `folder` the weights are also written to `folder(version)`, for other readers than the engines.
        """
        ...

    def folder(self, version: WeightVersion) -> Path:
        """Returns the folder of a version that was prepared with a folder."""
        ...

    def push(self, version: WeightVersion) -> None:
        """Makes every engine load the weights last prepared. Running requests continue under the new version."""
        ...

    def verify(self, version: WeightVersion) -> None:
        """Compares the engines' weights with the pushed ones. Raises EngineError for the first engine that differs."""
        ...

    def close(self) -> None:
        """Closes the connection between trainer and engines."""
        ...
