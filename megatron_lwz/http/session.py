"""Base of all our HTTP clients: one session to one server, opened on first use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from megatron_lwz.errors import conceal, concealed


def is_address(url: str) -> bool:
    """Returns whether `url` begins with http://host or https://host. One with a password or a query is none of ours."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # half an IPv6 address, a port that is none
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and "@" not in parts.netloc and not parts.query


class Closing(ABC):
    """Base of objects that `async with` closes at its end."""

    @abstractmethod
    async def close(self) -> None:
        """Releases all resources. May be called more than once."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class HttpSession(Closing):
    """Connections to one server, inside one event loop. Their number is not limited."""

    def __init__(self, key: str | None, timeout: aiohttp.ClientTimeout | None = None) -> None:
        """Takes the bearer token `key` of every request, and the default `timeout` of requests."""
        conceal(key)
        self._key = key
        self._limits = timeout
        self._connections: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session. Needs a running event loop."""
        if self._connections is None:
            self._connections = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                connector=aiohttp.TCPConnector(limit=0),
                timeout=self._limits or aiohttp.ClientTimeout(),
            )
        return self._connections

    async def close(self) -> None:
        """Closes all connections. Servers then drop the requests that were running on them."""
        if self._connections is not None:
            await self._connections.close()
            self._connections = None


def quoted(data: bytes, most: int) -> str:
    """Returns the beginning of what a server said, in one line and without our key, for an error."""
    return " ".join(concealed(data.decode("utf-8", "replace"))[:most].split())


async def read_bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Reads the body of a response. Raises ValueError beyond `most` bytes."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > most:
            raise ValueError(f"more than {most} bytes")
    return bytes(data)
