"""Tells open pages that a run has written something: one watcher for all runs, server-sent events to the pages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping

from aiohttp import web

from megatron_lwz.errors import LwzError
from megatron_lwz.ui.run import Run, Stamp

INTERVAL = 1.0
"""Seconds between two looks at a run's files."""
_KEEP_ALIVE = 20.0

log = logging.getLogger(__name__)


class Watcher:
    """Looks at the files of all runs, keeps their indexes up to date, and wakes the pages that wait for news."""

    def __init__(self, runs: Mapping[str, Run], interval: float = INTERVAL) -> None:
        self._runs = runs
        self._interval = interval
        self._seen: dict[str, Stamp] = {}
        self._news = dict.fromkeys(runs, 0)
        self._changed = asyncio.Condition()
        self.closing = False

    async def close(self) -> None:
        """Lets go of all pages that wait for news."""
        self.closing = True
        async with self._changed:
            self._changed.notify_all()

    async def watch(self) -> None:
        """Looks until it is cancelled."""
        while True:
            for run in self._runs.values():
                try:
                    news = await asyncio.to_thread(self._look, run)
                except LwzError as error:  # a file in mid-change, or damaged: the pages say so, the watch goes on
                    log.warning("%s", error)
                    news = True
                if news:
                    async with self._changed:
                        self._news[run.name] += 1
                        self._changed.notify_all()
            await asyncio.sleep(self._interval)

    async def next(self, name: str, after: int) -> int:
        """Waits for news of a run beyond the count `after`, and returns the new count."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.closing or self._news[name] > after)
            return self._news[name]

    def news(self, name: str) -> int:
        """Returns how often a run has changed since the server began."""
        return self._news[name]

    def _look(self, run: Run) -> bool:
        stamp = run.stamp()
        changed = self._seen.get(run.name) != stamp
        index = run.index()
        taken = 0
        while index is not None and (found := index.update()):
            taken += found
            if taken >= 64:
                return True
        self._seen[run.name] = stamp
        return changed or taken > 0


WATCHER = web.AppKey("watcher", Watcher)


def watch(app: web.Application, runs: Mapping[str, Run]) -> None:
    """Lets the app watch the runs while it serves, and close them when it ends."""

    async def around(app: web.Application) -> AsyncIterator[None]:
        app[WATCHER] = watcher = Watcher(runs)
        task = asyncio.create_task(watcher.watch())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        for run in runs.values():
            run.close()

    async def let_go(app: web.Application) -> None:
        await app[WATCHER].close()

    app.cleanup_ctx.append(around)
    app.on_shutdown.append(let_go)


async def stream(request: web.Request, run: Run) -> web.StreamResponse:
    """Sends an event whenever the run has written something, and a comment now and then in between."""
    watcher = request.app[WATCHER]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    news = watcher.news(run.name)
    await response.write(b": open\n\n")
    while not watcher.closing and request.transport is not None and not request.transport.is_closing():
        try:
            async with asyncio.timeout(_KEEP_ALIVE):
                news = await watcher.next(run.name, news)
            await response.write(f"data: {json.dumps({'news': news})}\n\n".encode())
        except TimeoutError:
            await response.write(b": here\n\n")
    return response
