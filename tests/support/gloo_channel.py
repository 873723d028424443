"""The transfer's channel over gloo, for `tests.support.weight_peer`."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_lwz.training.weight_sync.sender import OPENING

WAIT = timedelta(seconds=5)


def wait_for_openings() -> None:
    """Returns when no thread waits any more for engines that never come: one at work ends the interpreter by abort."""
    for thread in threading.enumerate():
        if thread.name == OPENING:
            thread.join(2 * WAIT.total_seconds())


class GlooJoining:
    """The id names a store on this machine, where the group meets. `nccl` is the version that it claims to have."""

    def __init__(self, nccl: str | None = None) -> None:
        self._stores: list[dist.TCPStore] = []
        self._nccl = nccl

    def nccl(self) -> str | None:
        return self._nccl

    def new_id(self) -> bytes:
        self._stores.append(dist.TCPStore("127.0.0.1", 0, None, True, WAIT, wait_for_workers=False))
        return f"127.0.0.1:{self._stores[-1].port}".encode().ljust(128, b" ")

    def open(self, unique_id: bytes, size: int) -> GlooChannel:
        return GlooChannel(join(unique_id, 0, size))


def join(unique_id: bytes, rank: int, size: int) -> Any:
    """A gloo group of its own, after one all-reduce."""
    assert len(unique_id) == 128
    host, port = unique_id.decode().strip().split(":")
    store = dist.TCPStore(host, int(port), None, False, WAIT)
    group = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, WAIT)
    group.allreduce([torch.zeros(1)]).wait()
    return group


class GlooChannel:
    """Rank 0 of a gloo group."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._work: Any = None

    def send(self, data: torch.Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._work = self._group.broadcast([data], options)

    def sent(self) -> bool:
        return bool(self._work.is_completed())

    def close(self) -> None:
        """The group ends with the last reference to it."""
        self._group = self._work = None
