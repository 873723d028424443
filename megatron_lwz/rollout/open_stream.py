"""One open stream of an engine, and how its reader reports that it has read everything that arrived."""

from __future__ import annotations

import asyncio
import select
import time
from enum import Enum, auto

import aiohttp

READ_SECONDS = 0.25
"""Maximum time between two reads of a stream."""
IN_FLIGHT_SECONDS = 0.25
"""Time within which everything arrives that a paused engine had sent. It is longer than TCP's minimum retransmission
timeout (0.2 s).
"""
OPENING_PASSES = 5
"""Passes of the event loop in which an answer that is already in the socket opens its stream. One pass reads, the
next one wakes the request; the others are margin.
"""


class Phase(Enum):
    """State of the task that reads a stream, as other tasks of its loop see it."""

    OPENING = auto()
    """The task sends the request, or awaits the answer's headers."""
    WAITING = auto()
    """The task awaits bytes."""
    RESTING = auto()
    """The task lets the network buffer the stream for a while."""
    HANDED_OVER = auto()
    """The task has passed all its bytes to the consumer, which awaits something else: back-pressure."""
    ENDED = auto()


class OpenStream:
    """A stream that is read in the event loop in which it was created.

    Its reader task calls `begin`, `read` and `end`.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._phase = Phase.OPENING
        self._response: aiohttp.ClientResponse | None = None
        self._began = 0.0
        self._taken = 0
        """Number of bytes of the answer's body that the reader has taken."""
        self._rest: asyncio.Future[None] | None = None
        self._asked = 0
        """Number of tasks inside `caught_up`."""

    def begin(self, response: aiohttp.ClientResponse) -> None:
        """Records that the engine has answered with 200. The body of the answer is the stream."""
        self._response, self._began = response, time.monotonic()

    async def read(self) -> bytes:
        """Returns the next bytes of the body, b"" at its end. Raises aiohttp's errors."""
        if self._response is None:
            raise RuntimeError("read before begin")
        if self._phase is Phase.HANDED_OVER:
            await self._leave_to_network(self._response)
        self._phase = Phase.WAITING
        chunk = await self._response.content.readany()
        self._taken += len(chunk)
        self._phase = Phase.HANDED_OVER
        return chunk

    def end(self) -> None:
        """Records that the stream is read no further."""
        self._phase, self._response = Phase.ENDED, None

    async def caught_up(self) -> None:
        """Returns when everything that arrived before the call was read, or its consumer holds it back.

        Must run in the stream's loop. The reader does not rest meanwhile. Bytes that the engine could send only after
        its connection accepted more count too: if bytes were read, it returns once none followed for IN_FLIGHT_SECONDS.
        """
        self._asked += 1
        if self._rest is not None and not self._rest.done():
            self._rest.set_result(None)
        try:
            taken = self._taken
            while True:
                await self._emptied()
                if self._taken == taken:
                    return
                taken = self._taken
                await asyncio.sleep(IN_FLIGHT_SECONDS)
        finally:
            self._asked -= 1

    async def _emptied(self) -> None:
        """Checks once per pass of the loop. Each pass in between reads the sockets' bytes and wakes their readers."""
        passes = 1
        await asyncio.sleep(0)
        while not self._is_empty(opens=passes < OPENING_PASSES):
            passes += 1
            await asyncio.sleep(0)

    def _is_empty(self, *, opens: bool) -> bool:
        if self._phase is Phase.OPENING:
            return not opens
        if self._phase is Phase.WAITING and self._response is not None:
            if self._response.content.total_bytes != self._taken:  # bytes arrived, and wake the reader
                return False
            connection = self._response.connection
            return connection is not None and not _has_bytes(connection.transport)
        return self._phase in (Phase.HANDED_OVER, Phase.ENDED)

    async def _leave_to_network(self, response: aiohttp.ClientResponse) -> None:
        """Pauses reading for a while, because few large reads cost much less than many small ones.

        This loop shares its interpreter with the training loop. The pause is short in a young stream, so that short
        responses are not delayed.
        """
        protocol = response.connection.protocol if response.connection is not None else None
        if protocol is None or self._asked:  # everything has been received, or a task waits for the reader
            return
        self._phase = Phase.RESTING
        self._rest = self.loop.create_future()
        seconds = min(READ_SECONDS, (time.monotonic() - self._began) / 16)
        timer = self.loop.call_later(seconds, _wake, self._rest)
        protocol.pause_reading()
        try:
            await self._rest
        finally:
            timer.cancel()
        protocol.resume_reading()


def _wake(rest: asyncio.Future[None]) -> None:
    if not rest.done():
        rest.set_result(None)


def _has_bytes(transport: asyncio.Transport | None) -> bool:
    """Returns whether the socket holds bytes, or the end, that the loop has not read.

    It is True also for a closing socket: that ends the stream in a moment.
    """
    if transport is None or transport.is_closing():
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))
