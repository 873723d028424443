"""The trainer's side of a process that reads engines' streams, so that parsing them does not hold the trainer's interpreter."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from itertools import count
from typing import Any, cast

from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.events import StreamEnd, StreamEvent
from megatron_lwz.rollout.reader_frames import FrameParser, Kind, frame, message, unpack_delta
from megatron_lwz.types import FinishReason, TokenDelta, WeightVersion

MOST_QUEUED = 8192
"""Frames that may wait for their rollouts; then the pipe is read no further, and the reader holds its streams back."""

_Frame = tuple[Kind, bytes]


class StreamReader:
    """Starts the process with the first stream, and again should it have ended. Use it inside one event loop.

    Its end fails the streams that it was reading (class connection): they go on as after any other broken stream.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._starting = asyncio.Lock()
        self._process: _Process | None = None

    async def read(
        self, work: Mapping[str, Any], url: str, name: Callable[[str], WeightVersion]
    ) -> AsyncGenerator[StreamEvent, None]:
        """The events of one request. `name` makes a version of what the engine calls its weights. Raises RequestFailure.

        `work` is `reader_main.Work`.
        """
        process, number = await self._start(), next(self._numbers)
        queue = process.open(number, work)
        try:
            while True:
                kind, payload = await queue.get()
                process.taken(1)
                if kind is Kind.DELTA:
                    ids, logprobs, version = unpack_delta(payload)
                    yield TokenDelta(ids, logprobs, name(version))
                    continue
                told = json.loads(payload)
                process.close_stream(number, ended=True)
                if kind is Kind.FAILED:
                    raise RequestFailure(url, told["advice"], Failure(told["kind"]))
                yield StreamEnd(FinishReason(told["reason"]), told["stop"])
                return
        finally:
            process.close_stream(number)

    async def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            await process.end()

    async def _start(self) -> _Process:
        async with self._starting:
            if self._process is None or self._process.exited.is_set():
                _, self._process = await asyncio.get_running_loop().subprocess_exec(
                    _Process,
                    *(sys.executable, "-m", "megatron_lwz.rollout.reader_main"),
                    stderr=None,
                    start_new_session=True,  # ^C is for the trainer, which ends the reader when it has closed its streams
                )
            return self._process


class _Process(asyncio.SubprocessProtocol):
    """One process and the streams that it reads."""

    def __init__(self) -> None:
        self.exited = asyncio.Event()
        self._frames = FrameParser()
        self._streams: dict[int, asyncio.Queue[_Frame]] = {}
        self._queued = 0

    def open(self, number: int, work: Mapping[str, Any]) -> asyncio.Queue[_Frame]:
        """Has it begin a request; what comes of it."""
        self._streams[number] = asyncio.Queue()
        self._send(message(number, Kind.OPEN, work))
        return self._streams[number]

    def taken(self, frames: int) -> None:
        """So many frames wait no more."""
        full = self._queued > MOST_QUEUED
        self._queued -= frames
        if full and self._queued <= MOST_QUEUED:
            self._pipe().resume_reading()

    def close_stream(self, number: int, *, ended: bool = False) -> None:
        """Nobody listens to it any more; `ended`: the engine has nothing more to say."""
        queue = self._streams.pop(number, None)
        if queue is not None:
            self.taken(queue.qsize())
            if not ended:
                self._send(frame(number, Kind.CANCEL))

    async def end(self) -> None:
        """Kills it: nobody would read what it says."""
        self._transport.close()
        await self.exited.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It runs."""
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        """It says something."""
        for number, kind, payload in self._frames.feed(cast(bytes, data)):
            if number in self._streams:
                self._streams[number].put_nowait((kind, payload))
                self._queued += 1
        if self._queued > MOST_QUEUED:
            self._pipe().pause_reading()

    def process_exited(self) -> None:
        """Nothing more will come of the streams that are open."""
        self.exited.set()
        told = {"advice": "the process that reads its streams has ended", "kind": Failure.CONNECTION.value}
        for queue in self._streams.values():
            queue.put_nowait((Kind.FAILED, json.dumps(told).encode()))
            self._queued += 1

    def _send(self, data: bytes) -> None:
        if not self.exited.is_set():
            cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0)).write(data)

    def _pipe(self) -> asyncio.ReadTransport:
        return cast(asyncio.ReadTransport, self._transport.get_pipe_transport(1))
