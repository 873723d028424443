"""Weight sync through safetensors folders that trainer and engines can both read: slow, simple, works everywhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from megatron_lwz.distributed import groups
from megatron_lwz.errors import EngineError
from megatron_lwz.models.hf import export_policy
from megatron_lwz.orchestrator.protocol import EngineControl
from megatron_lwz.types import WeightVersion

KEPT_VERSIONS = 2
_VERSION = re.compile(r"\d+\.\d+|\.\d+\.\d+\.\d+\.(tmp|old)")
"""Names of a version's folder, and of one that a killed run was writing or replacing."""


class DiskTransport:
    """Exports each version to `root`/<step>.<attempt>/ and makes the engines reload it.

    `engines` is needed on rank 0 only. `prepare` is collective; `push` and `verify` work on rank 0 and return at once
    on the others.
    """

    def __init__(
        self,
        engines: EngineControl | None,
        root: Path,
        *,
        chunks: Sequence[torch.nn.Module],
        config_files_from: Path | None,
    ) -> None:
        self._engines = engines
        self._root = root.resolve()
        self._chunks = chunks
        self._config_files_from = config_files_from

    def folder(self, version: WeightVersion) -> Path:
        """Returns the folder into which `prepare` writes this version."""
        return self._root / f"{version.step}.{version.attempt}"

    def prepare(self, version: WeightVersion, *, folder: bool = True) -> WeightVersion:
        """Writes the policy's weights; returns the version with its checksum. The two newest versions are kept."""
        checksum = export_policy(self._chunks, self.folder(version), config_files_from=self._config_files_from)
        if groups.is_rank_zero():
            self._drop_old(keep=self.folder(version))
        return replace(version, checksum=checksum)

    def push(self, version: WeightVersion) -> None:
        """Makes every engine load the prepared folder. Running requests continue under the new version."""
        if self._engines is None:
            return
        self._engines.push_weights(self.folder(version), version)

    def verify(self, version: WeightVersion) -> None:
        """Compares each engine's checksum with the trainer's. Raises EngineError for the first that differs."""
        if self._engines is None:
            return
        for url, checksum in self._engines.weight_checksum().items():
            if checksum != version.checksum:
                raise EngineError(
                    url,
                    f"runs weights with checksum {checksum}, the trainer's at step {version.step} is {version.checksum}: "
                    f"does the engine see {self.folder(version)} as the trainer wrote it, in the same precision?",
                )

    def close(self) -> None:
        """Does nothing: this transport holds no resources."""

    def _drop_old(self, *, keep: Path) -> None:
        found = [path for path in self._root.iterdir() if path.is_dir() and path != keep]
        others = [path for path in found if _VERSION.fullmatch(path.name)]  # anything else was put there by somebody
        killed = [path for path in others if path.name.startswith(".")]  # incomplete exports of a killed run
        older = sorted(set(others) - set(killed), key=lambda path: path.stat().st_mtime_ns)
        for path in killed + older[: 1 - KEPT_VERSIONS]:
            shutil.rmtree(path)
