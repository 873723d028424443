"""The engines of a run: which one writes next, and all of them together for weight sync."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.types import WeightVersion

PUSH_POLL_SECONDS = 0.05
Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class EnginePool:
    """Leases slots to the controller's loop; its weight-sync methods are called from any thread without a loop."""

    def __init__(self, clients: Sequence[EngineClient], *, concurrency: int) -> None:
        self.clients = list(clients)
        self._free = [concurrency] * len(self.clients)
        self._failures = [0] * len(self.clients)
        self._restoring = [asyncio.Lock() for _ in self.clients]
        self._weights: tuple[Path, WeightVersion] | None = None
        """What was pushed last, once every engine has it."""
        self._pushing = False
        self._slots = asyncio.Semaphore(concurrency * len(self.clients))

    @asynccontextmanager
    async def lease(self, group: int) -> AsyncIterator[EngineClient]:
        """A slot on the engine with the fewest failures in a row; waits for one, in order.

        Ties go by group, so that the samples of a group share an engine's prefix cache.
        """
        async with self._slots:
            index = min(
                (i for i, free in enumerate(self._free) if free),
                key=lambda i: (self._failures[i], (i - group) % len(self._free)),
            )
            self._free[index] -= 1
            try:
                yield self.clients[index]
            finally:
                self._free[index] += 1

    def report(self, client: EngineClient, *, failed: bool) -> None:
        """Failures in a row make an engine the last choice until it succeeds again."""
        index = self.clients.index(client)
        self._failures[index] = self._failures[index] + 1 if failed else 0

    async def restore(self, client: EngineClient) -> None:
        """Gives an engine that failed the weights pushed last if it has others: it may have been started anew."""
        index = self.clients.index(client)
        if self._failures[index] == 0 or self._weights is None:
            return
        async with self._restoring[index]:
            while self._pushing:  # rollouts go on during a push, which is about to say what is right
                await asyncio.sleep(PUSH_POLL_SECONDS)
            (path, pushed), found = self._weights, await client.weight_version()
            version = str(pushed)
            if found in (None, version):
                return
            log.warning("engine %s runs weights %r: it gets %s again", client.url, found, version)
            await _load(client, path, version)

    async def close(self) -> None:
        """Ends the controller's connections."""
        await asyncio.gather(*(client.close() for client in self.clients))

    def push_weights(self, path: Path, version: WeightVersion) -> None:
        """Every engine pauses, loads the folder, takes the version's name and goes on with what it was writing."""
        self._pushing = True
        try:
            self._on_all(lambda client: _load(client, path, str(version)))
            self._weights = path, version
        finally:
            self._pushing = False
        self.set_version(version)

    def set_version(self, version: WeightVersion) -> None:
        """For engines that do not say themselves which weights wrote a token."""
        for client in self.clients:
            client.version = version

    def weight_checksum(self) -> dict[str, str]:
        """URL → checksum (hex) of the weights each engine runs."""
        checksums = self._on_all(lambda client: client.weight_checksum())
        return {client.url: checksum for client, checksum in zip(self.clients, checksums, strict=True)}

    def models(self) -> dict[str, dict[str, Any]]:
        """URL → what each engine says about the model it serves."""
        entries = self._on_all(lambda client: client.models())
        return {client.url: entry for client, entry in zip(self.clients, entries, strict=True)}

    def _on_all(self, action: Callable[[EngineClient], Awaitable[Answer]]) -> list[Answer]:
        async def ask(client: EngineClient) -> Answer:
            async with client.twin() as twin:
                return await action(twin)

        async def ask_all() -> list[Answer]:
            return await asyncio.gather(*(ask(client) for client in self.clients))

        return asyncio.run(ask_all())


async def _load(client: EngineClient, path: Path, version: str) -> None:
    await client.pause()
    try:
        await client.reload_weights(path)
        await client.update_weight_version(version)
    finally:
        await client.resume()
