"""Rank 0's end of the process group that connects it with every GPU of the engines."""

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
        """Starts to send contiguous uint8 data, which must not change until `sent` returns True. Raises LwzError."""
        ...

    def sent(self) -> bool:
        """Whether all data sent so far has been received. Raises LwzError."""
        ...

    def close(self) -> None:
        """Leaves the group, even while data is being sent."""
        ...


class Joining(Protocol):
    """The way in which rank 0 and the engines find each other and form a group."""

    def nccl(self) -> str | None:
        """Returns the version of NCCL on this side, None where the group is not one of NCCL."""
        ...

    def new_id(self) -> bytes:
        """Returns a new 128-byte id for each group; all members need it to join. Raises LwzError."""
        ...

    def open(self, unique_id: bytes, size: int) -> Channel:
        """Joins as rank 0 of `size`. Raises LwzError.

        Blocks until all members have joined, so the caller runs it in a thread.
        """
        ...


@dataclass(frozen=True)
class NcclJoining:
    """Joins through NCCL, on one GPU of this process."""

    library: NcclLibrary
    device: torch.device

    def nccl(self) -> str:
        """Returns the version of the loaded library."""
        return self.library.version()

    def new_id(self) -> bytes:
        """Returns NCCL's unique id."""
        return self.library.unique_id()

    def open(self, unique_id: bytes, size: int) -> Channel:
        """Joins as vLLM's workers do: creates the communicator, then runs one all-reduce of one number."""
        return NcclChannel(NcclCommunicator(self.library, unique_id, size=size, device=self.device), self.device)


class NcclChannel:
    """Broadcasts over a communicator that all ranks have just joined."""

    def __init__(self, communicator: NcclCommunicator, device: torch.device) -> None:
        self._communicator = communicator
        warm_up = torch.zeros(1, device=device)  # kept alive until the all-reduce is done
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
        """Aborts the communicator."""
        self._communicator.abort()
