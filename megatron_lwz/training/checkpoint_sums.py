"""`checksums.json` of a checkpoint folder: size and SHA-256 of every file that its writer made.

It is written last, before the folder gets its final name. It has a checksum of itself, so damage to it is not taken for
damage to the files that it names.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_lwz.distributed import exchange, groups
from megatron_lwz.errors import DamagedCheckpoint, DataError
from megatron_lwz.file_sums import FileSum, difference
from megatron_lwz.reading import read_object

SUMS_FILE = "checksums.json"
STATE_FILE = "state.json"
"""File of a training checkpoint with its step, layout and architecture. Its `checksums` says that SUMS_FILE exists."""

log = logging.getLogger(__name__)


def sums_content(sums: Mapping[str, FileSum]) -> bytes:
    """Returns the content of SUMS_FILE."""
    files = {name: {"size": found.size, "sha256": found.sha256} for name, found in sorted(sums.items())}
    return (json.dumps({"files": files, "of_this_file": _own_sum(files)}, indent=1) + "\n").encode()


def read_sums(folder: Path) -> dict[str, FileSum]:
    """Returns the sums that SUMS_FILE names. Raises DamagedCheckpoint if it is not as it was written."""
    try:
        record = read_object(folder / SUMS_FILE)
        if record["of_this_file"] == _own_sum(record["files"]):
            return {name: FileSum(entry["size"], entry["sha256"]) for name, entry in record["files"].items()}
        reason = "its own checksum is another"
    except DataError as error:
        reason = error.advice
    except (LookupError, TypeError, AttributeError):
        reason = "it is no list of files"
    raise DamagedCheckpoint(folder, f"{SUMS_FILE} is damaged ({reason})")


def check_files(folder: Path, *, contents: bool) -> None:
    """Compares the files of a checkpoint with its SUMS_FILE; the ranks divide the files. Collective.

    Without `contents` only sizes are compared. A checkpoint of an earlier version has no sums: a log line says so.
    Raises DamagedCheckpoint, on every rank alike.
    """
    fault = exchange.first_said(_fault(folder, contents=contents))
    if fault is not None:
        raise DamagedCheckpoint(folder, fault)


def _fault(folder: Path, *, contents: bool) -> str | None:
    if not (folder / SUMS_FILE).exists():
        if _says_it_has_sums(folder):
            return f"{SUMS_FILE} is missing"
        if groups.is_rank_zero():
            log.warning("%s has no %s (an earlier version wrote it): it is read without a check", folder, SUMS_FILE)
        return None
    try:
        sums = read_sums(folder)
    except DamagedCheckpoint as error:
        return error.fault
    found = (
        difference(folder / name, sums[name], contents=contents)
        for name in _share(sums, dist.get_rank(), dist.get_world_size())
    )
    return next((fault for fault in found if fault is not None), None)


def _share(sums: Mapping[str, FileSum], rank: int, ranks: int) -> list[str]:
    """Returns the files that `rank` checks: every rank about as many bytes."""
    shares: list[list[str]] = [[] for _ in range(ranks)]
    filled = [0] * ranks
    for name in sorted(sums, key=lambda name: (-sums[name].size, name)):
        least = filled.index(min(filled))
        shares[least].append(name)
        filled[least] += sums[name].size
    return shares[rank]


def _says_it_has_sums(folder: Path) -> bool:
    try:
        return bool(read_object(folder / STATE_FILE).get("checksums"))
    except DataError:
        return False  # weights alone, or damaged: its reader says so


def _own_sum(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
