"""Records which evaluations of a run have begun, and keeps the weights of each until it is done.

`<run>/evaluation/step_00000010.json` records that the evaluation after 10 updates has begun, and its weight version. If
training continues meanwhile, the weights lie beside it. They are hard links, so they take no extra space while the
original files exist.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from megatron_lwz.errors import DataError
from megatron_lwz.metrics import write_json
from megatron_lwz.reading import read_object
from megatron_lwz.run_paths import STEPS, RunPaths, step_name, step_of
from megatron_lwz.types import WeightVersion
from megatron_lwz.writing import naming


def unfinished(run_dir: Path) -> set[int]:
    """Returns the steps whose evaluation has begun and is not recorded yet. Their checkpoints are still needed."""
    return {step_of(path.stem) for path in RunPaths(run_dir).pinned.glob(f"{STEPS}.json")}


@dataclass(frozen=True)
class Pinned:
    """An evaluation that has begun. `weights` is its own Hugging Face folder; None means the weights in the engines."""

    version: WeightVersion
    weights: Path | None

    @property
    def step(self) -> int:
        """Number of updates before the evaluation."""
        return self.version.step


class PinnedEvaluations:
    """The folder of a run's evaluations that have begun and are not recorded yet. Used by one process at a time."""

    def __init__(self, run_dir: Path) -> None:
        self._root = RunPaths(run_dir).pinned.resolve()

    def begin(self, version: WeightVersion, weights: Path | None) -> Pinned:
        """Records an evaluation. Links `weights`, an exported folder, into the folder; None keeps no weights."""
        self._root.mkdir(parents=True, exist_ok=True)
        target = self._weights(version.step)
        shutil.rmtree(target, ignore_errors=True)
        if weights is not None:
            _link_all(weights, target)
        write_json(self._record(version.step), {"version": str(version)})
        return Pinned(version, None if weights is None else target)

    def begun(self) -> list[Pinned]:
        """Returns the unfinished evaluations of an earlier process, by step. Raises DataError."""
        for left in self._root.glob(f".{STEPS}.tmp"):  # by a kill
            shutil.rmtree(left, ignore_errors=True)
        found = []
        for path in sorted(self._root.glob(f"{STEPS}.json")):
            try:
                version = WeightVersion.parse(read_object(path)["version"])
            except (DataError, ValueError, KeyError, AttributeError) as error:
                raise DataError(path, f"not the note of an evaluation ({error!r}): remove it") from error
            weights = self._weights(version.step)
            found.append(Pinned(version, weights if weights.is_dir() else None))
        return found

    def end(self, step: int) -> None:
        """Removes the record of an evaluation and its weights."""
        self._record(step).unlink(missing_ok=True)
        shutil.rmtree(self._weights(step), ignore_errors=True)

    def _record(self, step: int) -> Path:
        return self._root / f"{step_name(step)}.json"

    def _weights(self, step: int) -> Path:
        return self._root / step_name(step)


def _link_all(weights: Path, target: Path) -> None:
    """Makes `target` a folder with the files of `weights`, whole or not at all. Raises FileSystemError."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with naming(target):
        try:
            temporary.mkdir()
            for file in sorted(weights.iterdir()):
                _link(file, temporary / file.name)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
