"""The process that reads engines' streams for a trainer: requests come in through its input, frames go out.

`python -m megatron_lwz.rollout.reader_main`, started by `rollout/reader.py`. It ends when its input does, so it outlives no trainer.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import aclosing
from typing import Any, TypedDict

from megatron_lwz.http.retry import RequestFailure
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.reader_frames import GATHER_SECONDS, UNNAMED, FrameParser, Kind, frame, message, pack_delta
from megatron_lwz.types import TokenDelta

READ_BYTES = 1 << 20


class Work(TypedDict):
    """A request, as the trainer's client would make it itself."""

    url: str
    token: str | None
    model: str
    timeout: float
    body: dict[str, Any]


class Reader:
    """Writes the frames of all open streams; reads them no further while the trainer does not take what they said."""

    def __init__(self, output: asyncio.StreamWriter) -> None:
        self._output = output
        self._gathered: list[bytes] = []
        self._clients: dict[tuple[str, str | None, str, float], EngineClient] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def take(self, number: int, kind: Kind, payload: bytes) -> None:
        """What the trainer asks for."""
        if kind is Kind.OPEN:
            task = asyncio.get_running_loop().create_task(self._read(number, json.loads(payload)))
            self._tasks[number] = task
            task.add_done_callback(lambda _: self._tasks.pop(number, None))
        elif number in self._tasks:
            self._tasks[number].cancel()

    async def close(self) -> None:
        """Ends all streams."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def _read(self, number: int, work: Work) -> None:
        try:
            async with aclosing(self._client(work).read(work["body"])) as events:
                async for event in events:
                    if isinstance(event, TokenDelta):
                        self._gather(frame(number, Kind.DELTA, pack_delta(event)))
                    else:
                        told = {"reason": event.reason.value, "stop": event.stop}
                        self._send(message(number, Kind.END, told))
                    await self._output.drain()
        except RequestFailure as failure:
            told = {"advice": failure.advice, "kind": failure.kind.value}
            self._send(message(number, Kind.FAILED, told))

    def _gather(self, data: bytes) -> None:
        """Writes it with what comes within GATHER_SECONDS: each write wakes the trainer's loop."""
        if not self._gathered:
            asyncio.get_running_loop().call_later(GATHER_SECONDS, self._send)
        self._gathered.append(data)

    def _send(self, data: bytes = b"") -> None:
        """Writes it, behind all that waits."""
        self._output.write(b"".join([*self._gathered, data]))
        self._gathered.clear()

    def _client(self, work: Work) -> EngineClient:
        key = work["url"], work["token"], work["model"], work["timeout"]
        if key not in self._clients:
            url, token, model, timeout = key
            self._clients[key] = EngineClient(url, token, model=model, timeout=timeout)
            self._clients[key].version = UNNAMED
        return self._clients[key]


async def main() -> None:
    """Reads until the input ends."""
    loop = asyncio.get_running_loop()
    source = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin.buffer)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout.buffer)
    reader, parser = Reader(asyncio.StreamWriter(transport, protocol, None, loop)), FrameParser()
    while data := await source.read(READ_BYTES):
        for request in parser.feed(data):
            reader.take(*request)
    await reader.close()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # the trainer decides: it may want what is still to come
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(main())
