"""New weights take their name only when every reader has said that it read what the older ones had sent."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing

import pytest
from aiohttp import web

from megatron_lwz.rollout import open_stream, version_tracker
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.events import StreamEnd
from megatron_lwz.rollout.open_stream import OpenStream, Phase
from megatron_lwz.rollout.version_tracker import LocalTracker
from megatron_lwz.types import WeightVersion
from tests.support.synthetic_engine import TOKEN, Engine
from tests.support.waiting import PATIENCE

OLD, NEW = WeightVersion(1, 0, "old"), WeightVersion(2, 0, "new")
SETTINGS = {"request_id": "r", "seed": 5, "max_tokens": 9, "temperature": 1.0, "top_p": 1.0, "stop": ()}
ASKED = -math.inf
"""Paused long ago: nothing is in flight any more."""


class Paused(Engine):
    """Writes the first chunks, each of `size` bytes and followed by a `gap` in seconds, and after `resumed` the last one. It names no version."""

    def __init__(self, chunks: int = 1, size: int = 0, gap: float = 0.0) -> None:
        super().__init__()
        self.chunks, self.size, self.gap = chunks, size, gap
        self.sent_all, self.resumed = threading.Event(), threading.Event()

    async def _stream(self, request: web.Request, response: web.StreamResponse, body: dict, cut: None) -> None:
        for _ in range(self.chunks):
            await response.write(self.chunk(None))
            await asyncio.sleep(self.gap)
        self.sent_all.set()
        while not self.resumed.is_set():
            await asyncio.sleep(0.005)
        await response.write(self.chunk("stop"))

    def chunk(self, reason: str | None) -> bytes:
        choice = {"token_ids": [65], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": reason}
        return f"data: {json.dumps({'choices': [choice], 'padding': 'x' * self.size})}\n\n".encode()


@pytest.fixture
def reading_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread, as the controller's is."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def read(client: EngineClient, seen: list[WeightVersion], after: Callable[[], None] = lambda: None) -> None:
    """Notes the version of every token."""
    async with client, aclosing(client.stream([104, 124], **SETTINGS)) as stream:
        async for event in stream:
            if not isinstance(event, StreamEnd):
                seen += [event.version] * len(event.tokens)
                after()


@pytest.mark.parametrize(("chunks", "size"), [(1, 0), (100, 20_000)])
def test_what_older_weights_sent_is_named_after_them_however_busy_the_reader_is(
    start_engine, reading_loop, chunks, size
):
    """The reader's loop is held up after its first token, while the engine sends the rest: more than a few reads take."""
    engine = Paused(1 + chunks, size)
    client = EngineClient(start_engine(engine), TOKEN)
    client.version = OLD
    seen: list[WeightVersion] = []
    held = threading.Event()

    def hold() -> None:
        if not held.is_set():
            held.set()
            assert engine.sent_all.wait(PATIENCE)
            time.sleep(0.2)  # update() asks meanwhile

    reading = asyncio.run_coroutine_threadsafe(read(client, seen, hold), reading_loop)
    assert held.wait(PATIENCE)

    async def update() -> None:
        await client.tracker.read_up(ASKED)
        assert engine.sent_all.is_set() and seen == [OLD] * (1 + chunks), "all of it was read at its return"
        client.tracker.version = NEW
        engine.resumed.set()
        await asyncio.wait_for(asyncio.wrap_future(reading), 10)

    asyncio.run(update())
    assert seen == [OLD] * (1 + chunks) + [NEW]


@pytest.mark.parametrize("phase", [Phase.OPENING, Phase.WAITING, Phase.RESTING])
@pytest.mark.parametrize("gap", [0.15, 0.0])
def test_what_lies_in_the_socket_is_read_whatever_its_reader_was_doing(start_engine, monkeypatch, phase, gap):
    """Two tokens were sent. The second one may come `gap` seconds late, as if the connection had taken no more."""
    engine = Paused(2, gap=gap)

    class Tracker(LocalTracker):
        def add_stream(self, stream: OpenStream) -> None:
            self.stream = stream

    tracker = Tracker()
    tracker.version = OLD
    client = EngineClient(start_engine(engine), TOKEN, tracker=tracker)
    seen: list[WeightVersion] = []

    async def update() -> None:
        def age() -> None:  # old streams rest longest
            tracker.stream._began -= 1e3 * (phase is Phase.RESTING)

        reading = asyncio.ensure_future(read(client, seen, age))
        while not (engine.requests if phase is Phase.OPENING else seen and tracker.stream._phase is phase):
            await asyncio.sleep(0)
        time.sleep(0.05 + (gap if phase is not Phase.OPENING else 0))  # this loop sees nothing of what comes meanwhile
        assert tracker.stream._phase is phase
        await tracker.stream.caught_up()
        client.version = NEW
        engine.resumed.set()
        await reading

    monkeypatch.setattr(open_stream, "READ_SECONDS", 60.0 if phase is Phase.RESTING else 0.25)
    asyncio.run(asyncio.wait_for(update(), 20))
    assert seen == [OLD, OLD, NEW]


def test_the_barrier_opens_when_the_last_reader_answers_and_not_before(reading_loop):
    tracker, answered = LocalTracker(), asyncio.Event()

    class Slow(OpenStream):
        async def caught_up(self) -> None:
            await answered.wait()

    async def make() -> OpenStream:
        return Slow()

    async def update() -> None:
        stream = asyncio.run_coroutine_threadsafe(make(), reading_loop).result(PATIENCE)
        tracker.add_stream(stream)
        waiting = asyncio.ensure_future(tracker.read_up(ASKED))
        await asyncio.wait({waiting}, timeout=0.5)
        assert not waiting.done()
        reading_loop.call_soon_threadsafe(answered.set)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(update())


def test_what_the_consumer_holds_back_and_what_nobody_reads_any_more_is_not_waited_for(
    start_engine, caplog, monkeypatch
):
    monkeypatch.setattr(version_tracker, "DRAIN_SECONDS", 0.3)
    engine = Paused()
    client = EngineClient(start_engine(engine), TOKEN)
    twin = client.twin()

    async def leave_open() -> object:
        stream = twin.stream([104, 124], **SETTINGS)
        await anext(stream)
        return stream

    ended = asyncio.new_event_loop()
    kept = ended.run_until_complete(leave_open())  # a loop that ends in the middle of a stream

    async def hold_back() -> None:
        async with client, aclosing(client.stream([104, 124], **SETTINGS)) as stream:
            await anext(stream)
            await client.tracker.read_up(ASKED)

    asyncio.run(hold_back())
    assert not caplog.records, "it waited for DRAIN_SECONDS"
    engine.resumed.set()
    ended.run_until_complete(kept.aclose())
    ended.run_until_complete(twin.close())
    ended.close()


def test_a_reader_that_never_answers_is_given_up_and_logged(reading_loop, caplog, monkeypatch):
    monkeypatch.setattr(version_tracker, "DRAIN_SECONDS", 0.05)
    tracker = LocalTracker()

    class Silent(OpenStream):
        async def caught_up(self) -> None:
            await asyncio.sleep(60)

    async def make() -> OpenStream:
        return Silent()

    stream = asyncio.run_coroutine_threadsafe(make(), reading_loop).result(PATIENCE)
    tracker.add_stream(stream)
    asyncio.run(tracker.read_up(ASKED))
    assert "streams were not read up within 0.05 s" in caplog.text
