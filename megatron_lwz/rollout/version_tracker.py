"""What all clients of one engine share: which weights it was told last that it has, and the streams that are read of it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakSet

from megatron_lwz.rollout.open_stream import IN_FLIGHT_SECONDS, OpenStream
from megatron_lwz.types import WeightVersion

DRAIN_SECONDS = 5.0
"""Longest wait for the readers of one event loop."""

log = logging.getLogger(__name__)


class VersionTracker(Protocol):
    """Asked and told by clients in any event loop."""

    version: WeightVersion
    """Marks tokens of engines that do not say in the stream which weights wrote them."""

    def add_stream(self, stream: OpenStream) -> None:
        """This stream of the engine is read from now on, until it has ended."""
        ...

    async def read_up(self, since: float) -> None:
        """Returns when the readers of all streams have read what an engine, paused at `since` (monotonic seconds), had sent.

        What back-pressure holds back is left out. Readers that do not answer within DRAIN_SECONDS are logged.
        """
        ...


class LocalTracker:
    """The streams are read in this process."""

    def __init__(self) -> None:
        self.version = WeightVersion(0)
        self._streams: WeakSet[OpenStream] = WeakSet()
        self._lock = threading.Lock()

    def add_stream(self, stream: OpenStream) -> None:
        """See VersionTracker."""
        with self._lock:
            self._streams.add(stream)

    async def read_up(self, since: float) -> None:
        """See VersionTracker: each reader answers for its stream, in its own event loop."""
        await asyncio.sleep(max(0.0, since + IN_FLIGHT_SECONDS - time.monotonic()))
        by_loop: dict[asyncio.AbstractEventLoop, list[OpenStream]] = {}
        with self._lock:
            for stream in self._streams:
                by_loop.setdefault(stream.loop, []).append(stream)
        await asyncio.gather(*(_read_up_in(loop, streams) for loop, streams in by_loop.items()))


async def _read_up_in(loop: asyncio.AbstractEventLoop, streams: Sequence[OpenStream]) -> None:
    """Waits for the streams of one loop; one that has ended, or ends meanwhile, reads nothing any more."""
    if not loop.is_running():
        return
    answers = _all_caught_up(streams)
    try:
        future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answers, loop))
    except RuntimeError:  # closed just now
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
