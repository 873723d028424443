"""Group commits: one disk flush for many waiting tasks."""

from __future__ import annotations

import asyncio

from megatron_lwz.rollout.journal import Journal

GATHER_SECONDS = 0.02
"""Delay of an early commit. Groups that end within it share the commit."""


class Committer:
    """Commits the journal every `interval` seconds, and sooner for an urgent wait. One instance per event loop."""

    def __init__(self, journal: Journal, interval: float) -> None:
        self._journal = journal
        self._interval = interval
        self._urgent = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """Commits until cancelled. Raises the journal's errors, because after one nothing more can become durable."""
        while True:
            try:
                async with asyncio.timeout(self._interval):  # Python 3.11's wait_for may swallow the cancellation
                    await self._urgent.wait()
                await asyncio.sleep(min(GATHER_SECONDS, self._interval))
            except TimeoutError:
                pass
            self._urgent.clear()
            waiters, self._waiters = self._waiters, []
            try:
                await asyncio.to_thread(self._journal.commit)
            except BaseException:
                for waiter in waiters:
                    waiter.cancel()
                raise
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def durable(self, *, urgent: bool = True) -> None:
        """Returns when everything queued before the call is on disk.

        Without `urgent` it waits for the next regular commit.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if urgent:
            self._urgent.set()
        await waiter
