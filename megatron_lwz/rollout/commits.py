"""Group commits: many waiting tasks, one disk flush."""

from __future__ import annotations

import asyncio

from megatron_lwz.rollout.journal import Journal

GATHER_SECONDS = 0.02
"""Groups that end together share one early commit."""


class Committer:
    """Commits the journal every `interval` seconds, sooner when somebody waits urgently. One per event loop."""

    def __init__(self, journal: Journal, interval: float) -> None:
        self._journal = journal
        self._interval = interval
        self._urgent = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """Until cancelled. Raises what the journal raises: then nothing more can become durable."""
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
        """Returns when everything queued before the call is on disk. Not `urgent`: the next regular commit will do."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if urgent:
            self._urgent.set()
        await waiter
