"""Streams that another process reads are those that the client reads itself; its end is a broken stream like any other."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import aclosing

import pytest

from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout import reader as module
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.events import StreamEnd
from megatron_lwz.rollout.reader import StreamReader
from megatron_lwz.rollout.reader_frames import (
    UNNAMED,
    FrameParser,
    Kind,
    frame,
    message,
    pack_delta,
    unpack_delta,
)
from megatron_lwz.types import FinishReason, TokenDelta, WeightVersion
from tests.unit.rollout.synthetic_engine import TOKEN, Engine, serve
from tests.unit.rollout.test_client import PROMPT, chunk

SETTINGS = {"seed": 5, "max_tokens": 90, "temperature": 1.0, "top_p": 1.0}
ENGINES = [
    (Engine(delta=4, version="3.1.abc"), ()),
    (Engine(version=None), ()),
    (Engine(text="ab</answer>cd"), ("</answer>",)),
    (Engine(script=[chunk([7], [-1.0]), b"data: {broken\n\n"]), ()),
    (Engine(script=[chunk([7], [-1.0])]), ()),
    (Engine(status=503), ()),
    (Engine(status=400), ()),
]


async def heard(client: EngineClient, request_id: str, stop=()) -> tuple[list, list, object]:
    """Tokens with their versions, log-probs, and how it ended."""
    tokens, logprobs = [], []
    try:
        async for event in client.stream(PROMPT, request_id=request_id, stop=stop, **SETTINGS):
            if isinstance(event, StreamEnd):
                return tokens, logprobs, event
            tokens += [(token, event.version) for token in event.tokens]
            logprobs += event.logprobs
    except RequestFailure as failure:
        return tokens, logprobs, (failure.kind, str(failure))
    raise AssertionError("a stream without an end")


@pytest.fixture
def started():
    """Runs a coroutine function with a reader, which is ended afterwards."""

    def start(work) -> None:
        async def run() -> None:
            reader = StreamReader()
            try:
                await work(reader)
            finally:
                await reader.close()

        asyncio.run(run())

    return start


def test_what_another_process_reads_is_what_the_client_reads(started) -> None:
    async def compare(reader: StreamReader) -> None:
        for number, (engine, stop) in enumerate(ENGINES):
            runner, url = await serve(engine)
            async with EngineClient(url, TOKEN) as own, EngineClient(url, TOKEN, reader=reader) as other:
                own.version = other.version = WeightVersion(9, 1, "last")
                assert await heard(other, f"{number}", stop) == await heard(own, f"{number}", stop)
            await runner.cleanup()

    started(compare)


def test_a_killed_reader_breaks_its_streams_and_is_started_again(started, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_QUEUED", 3)  # the pipe is held and let go all the time
    engine = Engine(length=lambda seed: 80, delta=1, pause=0.01)

    async def kill(reader: StreamReader) -> None:
        runner, url = await serve(engine)
        async with EngineClient(url, TOKEN, reader=reader) as client:
            whole = await heard(client, "whole")
            assert whole[2] == StreamEnd(FinishReason.STOP)
            events = client.stream(PROMPT, request_id="broken", stop=(), **SETTINGS)
            with pytest.raises(RequestFailure, match="has ended") as caught:
                async for event in events:
                    assert isinstance(event, TokenDelta)
                    if reader._process is not None:
                        os.kill(reader._process._transport.get_pid(), signal.SIGKILL)
            assert caught.value.kind is Failure.CONNECTION
            assert await heard(client, "again") == whole
            async with aclosing(client.stream(PROMPT, request_id="left", stop=(), **SETTINGS)) as events:
                await anext(events)
            assert not reader._process._streams, "a stream that nobody listens to is closed"
            assert await heard(client, "after") == whole
        await runner.cleanup()

    started(kill)


def test_frames_survive_any_cut() -> None:
    draw = random.Random(3)
    delta = TokenDelta((1, 151_664, 0), (-0.5, -1.25, 0.0), WeightVersion(3, 1, "abc"))
    sent = [
        (0, Kind.DELTA, pack_delta(delta)),
        (4_000_000_000, Kind.CANCEL, b""),
        (2, Kind.DELTA, pack_delta(TokenDelta((), (), UNNAMED))),
    ]
    data = b"".join(frame(*each) for each in sent) + message(7, Kind.END, {"stop": "é"})
    for _ in range(50):
        parser, got, place = FrameParser(), [], 0
        while place < len(data):
            size = draw.randint(1, 20)
            got += parser.feed(data[place : place + size])
            place += size
        assert got[:3] == sent and got[3][:2] == (7, Kind.END)
    assert unpack_delta(sent[0][2]) == (delta.tokens, delta.logprobs, "3.1.abc")
    assert unpack_delta(sent[2][2]) == ((), (), "")
