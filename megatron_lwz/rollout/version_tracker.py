"""What all clients of one engine share: which weights it was told last that it has, and who reads its streams."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

from megatron_lwz.types import WeightVersion

DRAIN_SECONDS = 5.0
READ_SECONDS = 0.25
"""Longest time between two reads of a stream."""


class VersionTracker(Protocol):
    """Asked and told by clients in any event loop."""

    version: WeightVersion
    """Marks tokens of engines that do not say in the stream which weights wrote them."""

    def reads_here(self) -> None:
        """The running loop reads streams of the engine."""
        ...

    async def read_up(self, since: float) -> None:
        """Returns when the loops that read streams have read what an engine, paused at `since` (monotonic seconds), had sent.

        What back-pressure holds back is left out.
        """
        ...


class LocalTracker:
    """The streams are read in this process."""

    def __init__(self) -> None:
        self.version = WeightVersion(0)
        self._readers: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    def reads_here(self) -> None:
        """The running loop reads streams of the engine."""
        self._readers.add(asyncio.get_running_loop())

    async def read_up(self, since: float) -> None:
        """Waits for these loops."""
        for loop in list(self._readers):
            if loop is asyncio.get_running_loop():
                await _turns(since + READ_SECONDS)
            elif loop.is_running():
                with suppress(TimeoutError):  # it ended meanwhile
                    async with asyncio.timeout(DRAIN_SECONDS):
                        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_turns(since + READ_SECONDS), loop))


async def _turns(after: float) -> None:
    """Runs in a loop that reads streams: until each surely woke, and for the turns from its socket to its reader."""
    await asyncio.sleep(max(0.0, after - time.monotonic()))
    for _ in range(8):
        await asyncio.sleep(0.01)
