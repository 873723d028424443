"""Rank 0's end of the group that joins it with every GPU of the engines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from megatron_lwz.distributed.nccl import NcclCommunicator, NcclLibrary
from megatron_lwz.training.weight_sync.rendezvous import MeetingPoint

POLL_SECONDS = 0.001


class Channel(Protocol):
    """Sends bytes to all engines at once."""

    def send(self, data: Tensor) -> None:
        """Begins to send contiguous uint8 data, which must stay as it is until `sent`. Raises LwzError."""
        ...

    def sent(self) -> bool:
        """Whether everything has been received. Raises LwzError."""
        ...

    def close(self) -> None:
        """Leaves the group, whatever was being sent."""
        ...


OpenChannel = Callable[[MeetingPoint, int], Channel]
"""(where to meet, ranks in all) → the channel; blocks until everyone is there, so it is called in a thread."""


class NcclChannel:
    """By NCCL, as vLLM's workers join it: unique id, communicator, one all-reduce to warm up."""

    def __init__(self, library: NcclLibrary, device: torch.device, point: MeetingPoint, size: int) -> None:
        """Blocks until all ranks have joined. Raises EnvironmentSetupError."""
        unique_id = library.unique_id()
        point.publish(bytes(unique_id))
        self._communicator = NcclCommunicator(library, unique_id, size=size, device=device)
        self._communicator.all_reduce(torch.zeros(1, device=device))
        while not self._communicator.done():
            time.sleep(POLL_SECONDS)

    def send(self, data: Tensor) -> None:
        """Enqueues one broadcast from rank 0."""
        self._communicator.broadcast(data)

    def sent(self) -> bool:
        """Whether the broadcasts so far have run on this GPU."""
        return self._communicator.done()

    def close(self) -> None:
        """Gives the communicator up."""
        self._communicator.abort()
