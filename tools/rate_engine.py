"""An engine without a model: streams made-up tokens at a given rate, with a long-tailed distribution of lengths.

It implements the part of vLLM's HTTP interface that the controller uses, with chunks as large as vLLM's. It uses little
CPU time: events are serialised once, framed for HTTP, and sent repeatedly, and one task paces all streams. Run it in a
separate process.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from dataclasses import dataclass
from multiprocessing.connection import Connection

from aiohttp import web

from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import make_app, read_object

KEY = "benchmark"
EOS = 0
_VARIANTS = 64
_LETTERS = (97, 122)
_SLOTS = 8
"""Number of parts of the time between two deltas of a stream. Each part serves an eighth of the streams."""
_MOST_UNSENT = 1 << 18
"""Limit in bytes. A client that reads too slowly gets no more data until it has read."""


@dataclass(frozen=True)
class Law:
    """Distribution of response lengths: log-normal with this median and sigma (0: all equal), at most `cap` tokens."""

    median: int
    sigma: float
    cap: int

    def draw(self, seed: int) -> int:
        """Returns the length for a request's seed."""
        normal = random.Random(seed).gauss(0.0, 1.0)
        return max(1, min(self.cap, round(self.median * math.exp(self.sigma * normal))))


class Stream:
    """A response in progress: `left` tokens are still to be sent.

    `over` is set when only the last event remains, or when the client has disconnected.
    """

    def __init__(self, transport: asyncio.WriteTransport, number: int, left: int) -> None:
        self.transport = transport
        self.number = number
        self.left = left
        self.over = asyncio.Event()


class RateEngine:
    """The engine's HTTP server. `rate`: tokens per second of one stream, 0 for no limit; `delta`: tokens per event."""

    def __init__(self, law: Law, rate: float, delta: int) -> None:
        self._law = law
        self._rate = rate
        self._delta = delta
        self._version = "0.0."
        self._going = asyncio.Event()
        self._going.set()
        self._slots: list[list[Stream]] = [[] for _ in range(_SLOTS)]
        self._frames: list[bytes] = []

    def app(self) -> web.Application:
        """Returns the application. Every route but /health requires KEY."""
        answers = ("/reset_prefix_cache", "/abort_requests", "/collective_rpc")
        routes = [web.post(path, self._done) for path in answers]
        routes += [
            web.post("/v1/completions", self._complete),
            web.post("/pause", self._pause),
            web.post("/resume", self._resume),
            web.post("/update_weight_version", self._rename),
            web.post("/weight_checker", self._checksum),
            web.get("/weight_info", self._info),
            web.get("/health", self._done),
            web.get("/v1/models", self._models),
        ]
        return make_app(routes, token=KEY)

    async def pace(self) -> None:
        """Sends every stream its deltas on time, until cancelled."""
        if not self._rate:  # each stream runs as fast as it is read
            await asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            for slot in self._slots:
                if not self._going.is_set():
                    await self._going.wait()
                    due = loop.time()
                frames = self._events()
                for stream in slot:
                    self._send(stream, frames)
                slot[:] = [stream for stream in slot if not stream.over.is_set()]
                due = max(due + self._delta / self._rate / _SLOTS, loop.time() - 1.0)
                await asyncio.sleep(max(0.0, due - loop.time()))

    def _send(self, stream: Stream, frames: list[bytes]) -> None:
        transport = stream.transport
        if stream.left <= self._delta or transport.is_closing():
            stream.over.set()
        elif transport.get_write_buffer_size() < _MOST_UNSENT:
            transport.write(frames[stream.number % _VARIANTS])
            stream.number, stream.left = stream.number + 1, stream.left - self._delta

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request)
        number, asked = int(body["seed"]), int(body["max_tokens"])
        length = self._law.draw(number)
        reason = "stop" if length <= asked else "length"
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": one event follows another\n\n")  # after this the headers are sent
        await self._write(request, response, number, min(length, asked), reason)
        return response

    async def _write(
        self, request: web.Request, response: web.StreamResponse, number: int, left: int, reason: str
    ) -> None:
        assert isinstance(request.transport, asyncio.WriteTransport)
        stream = Stream(request.transport, number, left)
        if self._rate:
            min(self._slots, key=len).append(stream)
            try:
                await stream.over.wait()
            finally:
                stream.over.set()  # after a disconnect, the pacer drops the stream
        while stream.left > self._delta:
            await self._going.wait()
            await response.write(self._event(_letters(stream.number, self._delta), None))
            stream.number, stream.left = stream.number + 1, stream.left - self._delta
        last = [*_letters(stream.number, stream.left - 1), EOS if reason == "stop" else 97]
        await response.write(self._event(last, reason) + b"data: [DONE]\n\n")

    def _events(self) -> list[bytes]:
        """Returns full deltas of the current version, each as a chunk of an HTTP body."""
        if not self._frames:
            events = [self._event(_letters(number, self._delta), None) for number in range(_VARIANTS)]
            self._frames = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
        return self._frames

    def _event(self, tokens: list[int], reason: str | None) -> bytes:
        logprobs = [math.log((1 + (31 * token) % 97) / 98) for token in tokens]
        names = [f"token_id:{token}" for token in tokens]
        choice = {"index": 0, "text": "".join(map(chr, tokens)), "token_ids": tokens, "prompt_token_ids": None}
        choice["logprobs"] = {
            "text_offset": list(range(len(tokens))),
            "token_logprobs": logprobs,
            "tokens": names,
            "top_logprobs": [{name: value} for name, value in zip(names, logprobs, strict=True)],
        }
        choice |= {"finish_reason": reason, "stop_reason": None}
        return b"data: " + json.dumps({"choices": [choice], "weight_version": self._version}).encode() + b"\n\n"

    async def _pause(self, _: web.Request) -> web.Response:
        self._going.clear()
        return web.json_response({})

    async def _resume(self, _: web.Request) -> web.Response:
        self._going.set()
        return web.json_response({})

    async def _rename(self, request: web.Request) -> web.Response:
        self._version, self._frames = str((await read_object(request))["new_version"]), []
        return web.json_response({})

    async def _done(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def _checksum(self, _: web.Request) -> web.Response:
        return web.json_response({"checksum": "0"})

    async def _info(self, _: web.Request) -> web.Response:
        return web.json_response({"weight_version": self._version})

    async def _models(self, _: web.Request) -> web.Response:
        entry = {"id": "policy", "logprobs_mode": "full_softmax_at_temperature", "max_model_len": 2**20}
        return web.json_response({"data": [entry]})


def _letters(seed: int, count: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randint(*_LETTERS) for _ in range(count)]


def serve(pipe: Connection, law: Law, rate: float, delta: int) -> None:
    """Serves on a free loopback port, which it sends through the pipe, until it is terminated."""

    async def run() -> None:
        engine = RateEngine(law, rate, delta)
        runner = web.AppRunner(engine.app(), access_log=None)
        await runner.setup()
        listener = bind("127.0.0.1", 0)
        await web.SockSite(runner, listener).start()
        pipe.send(listener.getsockname()[1])
        await engine.pace()

    asyncio.run(run())
