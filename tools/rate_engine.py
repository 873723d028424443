"""An engine without a model: streams made-up tokens at a given rate, with a long-tailed law of lengths.

It speaks the part of vLLM's contract that the controller uses, and costs as little as a server can: its events are written once and sent
again and again. `bench_rollout.py` runs it in a process of its own.
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


@dataclass(frozen=True)
class Law:
    """Lengths of responses in tokens: log-normal with this median and sigma (0: all equal), at most `cap`."""

    median: int
    sigma: float
    cap: int

    def draw(self, seed: int) -> int:
        """The length that belongs to a request's seed."""
        normal = random.Random(seed).gauss(0.0, 1.0)
        return max(1, min(self.cap, round(self.median * math.exp(self.sigma * normal))))


class RateEngine:
    """`rate`: tokens per second of one stream, 0 for no bound; `delta`: tokens per event."""

    def __init__(self, law: Law, rate: float, delta: int) -> None:
        self._law = law
        self._rate = rate
        self._delta = delta
        self._version = "0.0."
        self._going = asyncio.Event()
        self._going.set()
        self._baked: list[bytes] = []

    def app(self) -> web.Application:
        """The application; every route but /health asks for KEY."""
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

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self._write(response, int(body["seed"]), int(body["max_tokens"]))
        return response

    async def _write(self, response: web.StreamResponse, number: int, asked: int) -> None:
        left = self._law.draw(number)
        reason = "stop" if left <= asked else "length"
        left = min(left, asked)
        due = asyncio.get_running_loop().time()
        while left > self._delta:
            await self._going.wait()
            await response.write(self._events()[number % _VARIANTS])
            number, left = number + 1, left - self._delta
            due += self._delta / self._rate if self._rate else 0.0
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        await self._going.wait()
        await response.write(self._event([*_letters(number, left - 1), EOS if reason == "stop" else 97], reason))
        await response.write(b"data: [DONE]\n\n")

    def _events(self) -> list[bytes]:
        """Full deltas of the present version."""
        if not self._baked:
            self._baked = [self._event(_letters(number, self._delta), None) for number in range(_VARIANTS)]
        return self._baked

    def _event(self, tokens: list[int], reason: str | None) -> bytes:
        logprobs = [-((31 * token) % 97) / 40 for token in tokens]
        choice = {"index": 0, "text": "", "token_ids": tokens, "logprobs": {"token_logprobs": logprobs}}
        choice |= {"finish_reason": reason, "stop_reason": None}
        return b"data: " + json.dumps({"choices": [choice], "weight_version": self._version}).encode() + b"\n\n"

    async def _pause(self, _: web.Request) -> web.Response:
        self._going.clear()
        return web.json_response({})

    async def _resume(self, _: web.Request) -> web.Response:
        self._going.set()
        return web.json_response({})

    async def _rename(self, request: web.Request) -> web.Response:
        self._version, self._baked = str((await read_object(request))["new_version"]), []
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
        runner = web.AppRunner(RateEngine(law, rate, delta).app(), access_log=None)
        await runner.setup()
        listener = bind("127.0.0.1", 0)
        await web.SockSite(runner, listener).start()
        pipe.send(listener.getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(run())
