"""What weight sync asks of the engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from megatron_lwz.types import WeightVersion


class EngineControl(Protocol):
    """All engines of a run, addressed together; every call returns when all have answered, or raises EngineError."""

    def push_weights(self, path: Path, version: WeightVersion) -> None:
        """Each engine holds its requests between two tokens, loads a Hugging Face folder that it can read, and goes on.

        From then on its tokens carry this version; prefix caches are dropped.
        """
        ...

    def weight_checksum(self) -> Mapping[str, str]:
        """URL of each engine → checksum (hex) of the weights it runs, as `models.hf.checksum_folder` computes it."""
        ...
