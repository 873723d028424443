"""What weight sync asks of the engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class EngineControl(Protocol):
    """All engines of a run, addressed together; every call returns when all have answered, or raises EngineError."""

    def pause(self) -> None:
        """Holds running requests between two tokens (they are kept)."""
        ...

    def resume(self) -> None:
        """Lets held requests go on."""
        ...

    def reload_weights(self, path: Path) -> None:
        """Loads a Hugging Face folder that every engine can read."""
        ...

    def update_weight_version(self, version: str) -> None:
        """From now on tokens carry this version; prefix caches are dropped."""
        ...

    def weight_checksum(self) -> Mapping[str, str]:
        """URL of each engine → checksum (hex) of the weights it runs, as `models.hf.checksum_folder` computes it."""
        ...
