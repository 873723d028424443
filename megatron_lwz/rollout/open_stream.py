"""One stream of an engine while it is read, and how its reader says that nothing of what came is left unread."""

from __future__ import annotations

import asyncio
import select
import time
from enum import Enum, auto

import aiohttp

READ_SECONDS = 0.25
"""Longest time between two reads of a stream."""
IN_FLIGHT_SECONDS = 0.25
"""What a paused engine had sent arrives within this time: longer than TCP waits at least before it sends again (0.2 s)."""
OPENING_PASSES = 5
"""Passes of the event loop in which an answer that lies in the socket opens its stream: one pass reads, the next one wakes
the request; the others are margin."""


class Phase(Enum):
    """What the task that reads a stream does, as any other task of its loop sees it."""

    OPENING = auto()
    """Sends the request, or awaits the answer's headers."""
    WAITING = auto()
    """Awaits bytes."""
    RESTING = auto()
    """Leaves the stream to the network for a while."""
    HANDED_OVER = auto()
    """Has given all bytes that it took to the consumer, which awaits something else: back-pressure."""
    ENDED = auto()


class OpenStream:
    """Belongs to the event loop in which it is made. `begin`, `read` and `end` are called by the task that reads."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._phase = Phase.OPENING
        self._response: aiohttp.ClientResponse | None = None
        self._began = 0.0
        self._taken = 0
        """Bytes of the answer's body that the reader took."""
        self._rest: asyncio.Future[None] | None = None
        self._asked = 0
        """Tasks inside `caught_up`."""

    def begin(self, response: aiohttp.ClientResponse) -> None:
        """The engine has answered with 200; its body is the stream."""
        self._response, self._began = response, time.monotonic()

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises what aiohttp raises."""
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
        """Nobody reads it any more."""
        self._phase, self._response = Phase.ENDED, None

    async def caught_up(self) -> None:
        """Returns when all that had come before the call was read, or its consumer holds it back. Runs in the stream's loop.

        Meanwhile the reader does not rest. What comes from an engine that had to wait until its connection took more counts
        too: if bytes were read, the answer is given when none followed for IN_FLIGHT_SECONDS.
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
        """Looks once per pass of the loop: each pass in between reads what is in the sockets, and wakes their readers."""
        passes = 1
        await asyncio.sleep(0)
        while not self._is_empty(opens=passes < OPENING_PASSES):
            passes += 1
            await asyncio.sleep(0)

    def _is_empty(self, *, opens: bool) -> bool:
        if self._phase is Phase.OPENING:
            return not opens
        if self._phase is Phase.WAITING and self._response is not None:
            if self._response.content.total_bytes != self._taken:  # came, and wakes the reader
                return False
            connection = self._response.connection
            return connection is not None and not _has_bytes(connection.transport)
        return self._phase in (Phase.HANDED_OVER, Phase.ENDED)

    async def _leave_to_network(self, response: aiohttp.ClientResponse) -> None:
        """Few large reads cost a fraction of many small ones, and this loop shares its interpreter with the training loop.

        Short in a young stream, so that short responses are not held up.
        """
        protocol = response.connection.protocol if response.connection is not None else None
        if protocol is None or self._asked:  # all of it has been received, or somebody waits for the reader
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
    """Whether the socket holds bytes, or the end, that the loop has not read. True also of one that closes: that ends the
    stream in a moment.
    """
    if transport is None or transport.is_closing():
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))
