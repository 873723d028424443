"""Rank 0's end of the group that joins it with every GPU of the engines."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron_lwz.distributed.nccl import NcclCommunicator, NcclLibrary

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


class Joining(Protocol):
    """How rank 0 and the engines find each other."""

    def new_id(self) -> bytes:
        """128 bytes that everyone has to know who joins; a new group each time. Raises LwzError."""
        ...

    def open(self, unique_id: bytes, size: int) -> Channel:
        """Joins as rank 0 of `size`; blocks until everyone is there, so it is called in a thread. Raises LwzError."""
        ...


@dataclass(frozen=True)
class NcclJoining:
    """By NCCL, on one GPU of this process."""

    library: NcclLibrary
    device: torch.device

    def new_id(self) -> bytes:
        """NCCL's unique id."""
        return self.library.unique_id()

    def open(self, unique_id: bytes, size: int) -> Channel:
        """Joins as vLLM's workers do: communicator, then one all-reduce of one number."""
        return NcclChannel(NcclCommunicator(self.library, unique_id, size=size, device=self.device), self.device)


class NcclChannel:
    """Broadcasts of a communicator, which all ranks have just joined."""

    def __init__(self, communicator: NcclCommunicator, device: torch.device) -> None:
        self._communicator = communicator
        warm_up = torch.zeros(1, device=device)  # held until it is done
        communicator.all_reduce(warm_up)
        while not communicator.done():
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
