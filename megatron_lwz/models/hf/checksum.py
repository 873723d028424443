"""One checksum for a model's weights: equal for every folder and every policy layout that hold the same bits."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from megatron_lwz.errors import CheckpointError, DataError
from megatron_lwz.metrics import write_json
from megatron_lwz.models.hf.tensors import DTYPE_NAMES, tensor_bytes
from megatron_lwz.reading import read_object

SUMS_FILE = "lwz_checksums.json"
"""File of an exported folder with the checksum of every tensor. Other programs do not read it."""

_THREADS = 8
"""Number of tensors hashed (and so held in memory) at a time.

Hashing takes seconds per GB and does not hold the GIL.
"""


def checksum_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Returns the checksum (32 hex digits) of named CPU tensors: names, types, shapes, bytes; in any order."""
    return joined(digests_of(tensors))


def digests_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """Returns the checksum (32 hex digits) of each of the named CPU tensors."""
    digests: dict[str, Future[str]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        running: deque[Future[str]] = deque()
        for name, tensor in tensors:
            if len(running) == _THREADS:
                running.popleft().result()
            digests[name] = pool.submit(_digest, name, tensor)
            running.append(digests[name])
    return {name: digest.result() for name, digest in digests.items()}


def joined(digests: Mapping[str, str]) -> str:
    """Returns the checksum of the whole model from those of its tensors."""
    return hashlib.blake2b(
        bytes.fromhex("".join(digests[name] for name in sorted(digests))), digest_size=16
    ).hexdigest()


def write_sums(folder: Path, digests: Mapping[str, str]) -> None:
    """Writes SUMS_FILE: what `digests_of` returned for the tensors in the folder's weight files."""
    write_json(folder / SUMS_FILE, {"checksum": joined(digests), "tensors": dict(sorted(digests.items()))})


def read_sums(folder: Path) -> dict[str, str] | None:
    """Returns the content of SUMS_FILE, None for a folder without it. Raises CheckpointError if it is damaged."""
    if not (folder / SUMS_FILE).is_file():
        return None
    try:
        record = read_object(folder / SUMS_FILE)
        digests = {str(name): str(digest) for name, digest in record["tensors"].items()}
        if joined(digests) == record["checksum"]:
            return digests
    except (DataError, LookupError, ValueError, AttributeError):
        pass
    raise CheckpointError(folder, f"{SUMS_FILE} is damaged: copy the folder again, or delete this file")


def _digest(name: str, tensor: torch.Tensor) -> str:
    head = f"{name}|{DTYPE_NAMES[tensor.dtype]}|{list(tensor.shape)}|".encode()
    made = hashlib.blake2b(head, digest_size=16)
    made.update(tensor_bytes(tensor))
    return made.hexdigest()
