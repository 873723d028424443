"""One checksum for a model's weights: equal for every folder and every policy layout that hold the same bits."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from megatron_lwz.models.hf.write import DTYPE_NAMES, tensor_bytes

_THREADS = 8
"""Number of tensors hashed (and so held in memory) at a time.

Hashing takes seconds per GB and does not hold the GIL.
"""


def checksum_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Returns the checksum (32 hex digits) of named CPU tensors: names, types, shapes, bytes; in any order."""
    digests: dict[str, Future[bytes]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        running: deque[Future[bytes]] = deque()
        for name, tensor in tensors:
            if len(running) == _THREADS:
                running.popleft().result()
            digests[name] = pool.submit(_digest, name, tensor)
            running.append(digests[name])
    joined = b"".join(digests[name].result() for name in sorted(digests))
    return hashlib.blake2b(joined, digest_size=16).hexdigest()


def _digest(name: str, tensor: torch.Tensor) -> bytes:
    head = f"{name}|{DTYPE_NAMES[tensor.dtype]}|{list(tensor.shape)}|".encode()
    made = hashlib.blake2b(head, digest_size=16)
    made.update(tensor_bytes(tensor))
    return made.digest()
