"""A run to read, and a server of it inside the test's own loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest

from megatron_lwz.http.hosts import Hosts
from megatron_lwz.http.listen import serve
from megatron_lwz.http.ports import bind
from megatron_lwz.ui.run import open_runs
from megatron_lwz.ui.server import make_ui
from tests.support.reading_run import write_reading_run

TOKEN = "token-of-the-test"


@pytest.fixture(scope="session")
def reading_run(tmp_path_factory):
    return write_reading_run(tmp_path_factory.mktemp("ui") / "novels")


@asynccontextmanager
async def served(*roots, names=()):
    """Gives a client whose requests carry the token, and the server's address."""
    runs = open_runs(roots)
    listener = bind("127.0.0.1", 0)
    listener.listen()  # so that a client may connect before the server's first turn
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    stop = asyncio.Event()
    task = asyncio.create_task(serve(make_ui(runs, TOKEN, Hosts("127.0.0.1", names)), listener, stop))
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(address, headers=headers, cookie_jar=aiohttp.DummyCookieJar()) as client:
            yield client, runs
    finally:
        stop.set()
        await task


async def indexed(runs):
    """Waits until the server's watcher has indexed everything."""
    for run in runs.values():
        while (counts := run.index().counts()) and counts[0] < counts[1]:
            await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def pages(reading_run):
    """Gets pages of the run by one server call per test: `pages("/path", …)` gives (status, text, headers) of each."""

    def get(*paths, method="GET", headers=None, json=None, root=reading_run, names=(), anonymous=False):
        async def main():
            found = []
            async with served(root, names=names) as (client, runs):
                await indexed(runs)
                for path in paths:
                    more = dict(headers or {})
                    if anonymous:
                        more["Authorization"] = ""
                    async with client.request(method, path, headers=more, json=json, allow_redirects=False) as answer:
                        found.append((answer.status, await answer.text(), answer.headers))
            return found

        return asyncio.run(main())

    return get
