"""The folder that a conversion writes: it appears whole or not at all, and replaces only what such a write made."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_lwz.errors import CheckpointError, refusal
from megatron_lwz.file_lock import holder_of
from megatron_lwz.models.hf.checksum import SUMS_FILE
from megatron_lwz.models.hf.folder import INDEX, SINGLE
from megatron_lwz.models.hf.write import CARRIED_FILES
from megatron_lwz.run_paths import RunPaths


def _names(*files: str, pattern: str) -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, (*files, "config.json", *CARRIED_FILES)), pattern]))


EXPORT = _names(SINGLE, INDEX, SUMS_FILE, pattern=r"model-\d{5}-of-\d{5}\.safetensors")
"""Names of the files of an exported Hugging Face folder."""
CHECKPOINT = _names(
    ".metadata", "metadata.json", "common.pt", "checksums.json", "config.yaml", pattern=r"__\d+_\d+\.distcp"
)
"""Names of the files of an imported checkpoint."""


@contextmanager
def atomic_folder(target: Path, kind: re.Pattern[str] = EXPORT, *, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Yields a temporary sibling folder that becomes `target` when the block ends without an error; else it is deleted.

    An earlier export, of files with names in `kind`, is replaced. Raises CheckpointError, and changes nothing, if the
    folder holds anything else or one of the `sources` of the export.
    """
    check_target(target, kind, sources)
    target = target.resolve()  # of a link, the folder that it names is replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir()
        yield temporary
        check_target(target, kind)  # again: a large model takes long to write
        if target.exists():
            old = target.parent / f".{target.name}.{os.getpid()}.old"
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def drop_unfinished(target: Path) -> None:
    """Removes what `atomic_folder` left beside `target` when it was killed. Nobody else may be writing there."""
    for left in target.parent.glob(f".{target.name}.*"):
        if re.fullmatch(r"\d+\.(tmp|old)", left.name.removeprefix(f".{target.name}.")):
            shutil.rmtree(left, ignore_errors=True)


def check_target(
    target: Path, written: re.Pattern[str], sources: Iterable[Path] = (), *, outside: Path | None = None
) -> None:
    """Raises CheckpointError unless `target` may be replaced: every entry is a file with a name that is `written`.

    It must not be one of the `sources` either, nor hold one, nor lie inside `outside`.
    """
    found = target.resolve()
    for source in (path.resolve() for path in sources):
        if found == source:
            raise CheckpointError(target, "is what is read from: name another folder")
        if source.is_relative_to(found):
            raise CheckpointError(target, f"holds {source}, which is read from: name another folder")
    if outside is not None and found.is_relative_to(outside.resolve()):
        raise CheckpointError(target, f"lies inside {outside}, which is read from: name another folder")
    if not found.exists():
        return
    if not found.is_dir():
        raise CheckpointError(target, "is a file; name a folder to write to")
    try:
        entries = sorted(found.iterdir())
    except OSError as error:
        raise CheckpointError(target, f"cannot be read {refusal(error)}") from error
    for entry in entries:
        if not entry.is_file() or not written.fullmatch(entry.name):
            advice = f"holds {entry.name}, which would be lost: name another folder, or move it away"
            raise CheckpointError(target, advice)


def check_no_run(target: Path) -> None:
    """Raises CheckpointError if `target` is, or lies in, the folder of a run that goes on."""
    found = target.resolve()
    for folder in (found, *found.parents):
        if (holder := holder_of(RunPaths(folder).lock)) is not None:
            raise CheckpointError(
                target, f"lies in {folder}, which {holder} writes: wait for it, or name another folder"
            )
