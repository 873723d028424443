"""The transfer's channel over gloo, for `tests.weight_peer`."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_lwz.training.weight_sync.rendezvous import MeetingPoint
from megatron_lwz.training.weight_sync.sender import OPENING

UNIQUE_ID = bytes(range(128))
WAIT = timedelta(seconds=5)


def wait_for_openings() -> None:
    """Returns when no thread waits any more for engines that never come: one at work ends the interpreter by abort."""
    for thread in threading.enumerate():
        if thread.name == OPENING:
            thread.join(2 * WAIT.total_seconds())


class GlooChannel:
    """Rank 0 of a gloo group that meets in the same store."""

    def __init__(self, point: MeetingPoint, size: int) -> None:
        point.publish(UNIQUE_ID)
        store = dist.TCPStore(point.address, point.port, size, False, WAIT, wait_for_workers=False, use_libuv=False)
        self._group: Any = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), 0, size, WAIT)
        self._group.allreduce([torch.zeros(1)]).wait()
        self._work: Any = None
        self.closed = False

    def send(self, data: torch.Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._work = self._group.broadcast([data], options)

    def sent(self) -> bool:
        return bool(self._work.is_completed())

    def close(self) -> None:
        self.closed = True
