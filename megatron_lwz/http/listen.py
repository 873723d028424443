"""Serves an app on a socket, with bounds on the number of connections and on the time that a client may be slow.

A request's header must arrive within IDLE_SECONDS, and so must the next request on an open connection. A client that
stops reading its answer is dropped after STALLED_SECONDS. A body's time is bounded where it is read (`read_object`).
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from typing_extensions import override

IDLE_SECONDS = 75.0
STALLED_SECONDS = 120.0
MOST_CONNECTIONS = 4096
"""Most open connections. Half of the process's file limit, if that is fewer."""
_STOP_SECONDS = 5.0
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


log = logging.getLogger(__name__)


def _of_our_own(record: logging.LogRecord) -> bool:
    """Whether a record of aiohttp is worth a line. A request that is no HTTP is answered with 400 and is no fault here."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


log.addFilter(_of_our_own)


class Connection(asyncio.Protocol):
    """One connection: passes everything to aiohttp's protocol, unless too many are open or the client stalls."""

    def __init__(self, inner: asyncio.Protocol, opened: set[Connection], most: int, stalled_seconds: float) -> None:
        self._inner, self._opened, self._most, self._stalled = inner, opened, most, stalled_seconds
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if len(self._opened) >= self._most:
            transport.write(_FULL)
            transport.close()
            return
        self._transport = transport
        self._opened.add(self)
        self._inner.connection_made(transport)

    @override
    def connection_lost(self, error: Exception | None) -> None:
        self._rest()
        if self._transport is not None:
            self._opened.discard(self)
            self._inner.connection_lost(error)

    @override
    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._inner.data_received(data)

    @override
    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._transport is not None else None

    @override
    def pause_writing(self) -> None:
        if self._transport is not None:  # the client does not read what was written
            self._timer = asyncio.get_running_loop().call_later(self._stalled, self._transport.abort)
            self._inner.pause_writing()

    @override
    def resume_writing(self) -> None:
        self._rest()
        if self._transport is not None:
            self._inner.resume_writing()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def serve(
    app: web.Application,
    listener: socket.socket,
    stop: asyncio.Event,
    *,
    most: int = MOST_CONNECTIONS,
    idle_seconds: float = IDLE_SECONDS,
    stalled_seconds: float = STALLED_SECONDS,
) -> None:
    """Serves until `stop` is set, then gives open requests a few seconds to end."""
    opened: set[Connection] = set()
    most = max(1, min(most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
    options: dict[str, Any] = {"access_log": None, "logger": log}
    options |= {"keepalive_timeout": idle_seconds, "shutdown_timeout": _STOP_SECONDS}
    runner = web.AppRunner(app, **options)
    await runner.setup()
    make: Callable[[], asyncio.Protocol] = runner.server  # type: ignore[assignment]  # set up just now
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(make(), opened, most, stalled_seconds), sock=listener, backlog=128
        )
        try:
            await stop.wait()
        finally:
            server.close()
    finally:
        await runner.cleanup()


def serve_until_signalled(app: web.Application, listener: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM. Called from the main thread."""

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(app, listener, stop)

    asyncio.run(main())
