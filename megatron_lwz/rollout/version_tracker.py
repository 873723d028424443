"""State that all clients of one engine share: the version of its weights, and its open streams."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakSet

from megatron_lwz.rollout.open_stream import IN_FLIGHT_SECONDS, OpenStream
from megatron_lwz.types import WeightVersion

DRAIN_SECONDS = 5.0
"""Maximum wait for the readers of one event loop."""

log = logging.getLogger(__name__)


class VersionTracker(Protocol):
    """Tracks the weight version and the open streams of one engine, for clients in any event loop."""

    paused_at: float
    """When the engine last confirmed to one of its clients that it paused, in monotonic seconds; −inf before."""
    version: WeightVersion
    """Version that marks the tokens of engines whose streams do not name the weights."""

    def add_stream(self, stream: OpenStream) -> None:
        """Adds a stream of the engine, which is read until it has ended."""
        ...

    async def read_up(self, since: float) -> None:
        """Returns when all readers have read what an engine, paused at `since` (monotonic seconds), had sent.

        Bytes that back-pressure holds back are left out. Readers that do not answer within DRAIN_SECONDS are logged.
        """
        ...


class LocalTracker:
    """A tracker of streams that are read in this process."""

    def __init__(self) -> None:
        self.paused_at = -math.inf
        self.version = WeightVersion(0)
        self._streams: WeakSet[OpenStream] = WeakSet()
        self._lock = threading.Lock()

    def add_stream(self, stream: OpenStream) -> None:
        """Implements VersionTracker.add_stream."""
        with self._lock:
            self._streams.add(stream)

    async def read_up(self, since: float) -> None:
        """Implements VersionTracker.read_up. Each reader waits for its stream in its own event loop."""
        await asyncio.sleep(max(0.0, since + IN_FLIGHT_SECONDS - time.monotonic()))
        by_loop: dict[asyncio.AbstractEventLoop, list[OpenStream]] = {}
        with self._lock:
            for stream in self._streams:
                by_loop.setdefault(stream.loop, []).append(stream)
        await asyncio.gather(*(_read_up_in(loop, streams) for loop, streams in by_loop.items()))


async def _read_up_in(loop: asyncio.AbstractEventLoop, streams: Sequence[OpenStream]) -> None:
    """Waits for the streams of one loop. A stream that has ended, or ends meanwhile, has nothing left to read."""
    if not loop.is_running():
        return
    answers = _all_caught_up(streams)
    try:
        future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answers, loop))
    except RuntimeError:  # the loop has just closed
        answers.close()
        return
    try:
        await asyncio.wait({future}, timeout=DRAIN_SECONDS)
        if future.done() and not future.cancelled():
            future.result()
        elif loop.is_running():
            log.warning(
                "streams were not read up within %g s: tokens of older weights may be marked as of the new ones",
                DRAIN_SECONDS,
            )
    finally:
        future.cancel()


async def _all_caught_up(streams: Sequence[OpenStream]) -> None:
    await asyncio.gather(*(stream.caught_up() for stream in streams))
