"""A real HTTP engine without a model: tokens are a function of (seed, position), so any continuation can be checked."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from aiohttp import web

from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import make_app, read_object
from megatron_lwz.rollout.limits import EngineLoad, write_load
from tests.support.waiting import PATIENCE

TOKEN = "secret"
LETTERS = "abcdefghijklmnopqrstuvwxyz .\n</answer>"


class CharTokenizer:
    """One token per character code; 0 is the EOS and decodes to nothing."""

    eos_ids = frozenset({0})

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return "".join(chr(i) for i in ids if i)


def written_token(seed: int, position: int, end: int) -> int:
    """The token at an absolute position; EOS at `end`."""
    if position >= end:
        return 0
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=2).digest()
    return 97 + int.from_bytes(digest, "big") % 26


def written_logprob(seed: int, position: int) -> float:
    digest = hashlib.blake2b(f"{position}/{seed}".encode(), digest_size=4).digest()
    return float(np.float32(-int.from_bytes(digest, "big") / 2**30))


def chunk(tokens, logprobs, reason=None, **more) -> bytes:
    choice = {"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}, "finish_reason": reason, **more}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode()


@dataclass
class Engine:
    """`length(seed)`: response tokens before the EOS. `broken(request number)`: tokens after which the connection is cut,
    None for never. `sent` counts tokens of all requests."""

    length: Callable[[int], int] = lambda seed: 40
    prompt_length: Callable[[list[int]], int] = lambda tokens: tokens.index(ord("|")) + 1
    delta: int = 3
    pause: float = 0.0
    broken: Callable[[int], int | None] = lambda number: None
    script: Sequence[bytes] | None = None
    status: int = 200
    error: str = "no room"
    text: str | None = None
    """Written instead of random letters."""
    version: str | None = "0.0."
    load: EngineLoad | None = None
    """What /metrics says, if anything."""
    sent: int = 0
    requests: list[dict] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request)
        self.requests.append(body)
        number = len(self.requests) - 1
        if self.status != 200:
            return web.json_response(
                {"error": {"message": self.error}}, status=self.status, dumps=partial(json.dumps, ensure_ascii=False)
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if self.script is not None:
            for part in self.script:
                await response.write(part)
                await asyncio.sleep(0.001)
            return response
        await self._stream(request, response, body, self.broken(number))
        return response

    async def _stream(self, request, response, body, cut) -> None:
        seed, prompt = body["seed"], body["prompt"]
        start = self.prompt_length(prompt)
        end = start + (len(self.text) if self.text is not None else self.length(seed))
        last = len(prompt) + body["max_tokens"]
        position, sent, text, reason, stop = len(prompt), 0, "", None, None
        while reason is None:
            tokens, logprobs = [], []
            while len(tokens) < self.delta and reason is None:
                if self.text is not None and position < end:
                    token = ord(self.text[position - start])
                else:
                    token = written_token(seed, position, end)
                tokens.append(token)
                logprobs.append(written_logprob(seed, position))
                text += chr(token) if token else ""
                position += 1
                stop = next((s for s in body["stop"] if text.endswith(s)), None)
                if token == 0 or stop:
                    reason = "stop"
                elif position == last:
                    reason = "length"
            sent += len(tokens)
            self.sent += len(tokens)
            choice = {"index": 0, "text": "", "token_ids": tokens, "logprobs": {"token_logprobs": logprobs}}
            choice |= {"finish_reason": reason, "stop_reason": stop}
            chunk = {"choices": [choice]} | ({"weight_version": self.version} if self.version else {})
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if cut is not None and sent >= cut:
                request.transport.abort()
                return
            await asyncio.sleep(self.pause)
        await response.write(b"data: [DONE]\n\n")

    async def control(self, request: web.Request) -> web.Response:
        self.calls.append(request.path)
        if request.path == "/collective_rpc":
            self.weights.append((await read_object(request))["kwargs"]["weights_path"])
        if request.path == "/update_weight_version":
            self.version = (await read_object(request))["new_version"]
        if request.path == "/weight_info":
            return web.json_response({"weight_version": self.version})
        if request.path == "/metrics":
            return web.Response(text=write_load(self.load, model="policy")) if self.load else web.Response(status=404)
        if request.path == "/weight_checker":
            return web.json_response({"checksum": "abc"})
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "policy", "logprobs_mode": "full_softmax_at_temperature"}]})
        return web.Response(text="ok")

    def app(self) -> web.Application:
        posts = ("/pause", "/resume", "/collective_rpc", "/update_weight_version", "/weight_checker")
        posts += ("/reset_prefix_cache", "/abort_requests", "/start_weight_update", "/finish_weight_update")
        routes = [web.post("/v1/completions", self.complete), *(web.post(path, self.control) for path in posts)]
        routes += [
            web.get("/health", self.control),
            web.get("/metrics", self.control),
            web.get("/v1/models", self.control),
            web.get("/weight_info", self.control),
        ]
        return make_app(routes, token=TOKEN)


async def serve(engine: Engine, port: int = 0) -> tuple[web.AppRunner, str]:
    """Serves in the running loop; gives the runner (for `cleanup`) and the URL."""
    runner = web.AppRunner(engine.app(), shutdown_timeout=0.1)
    await runner.setup()
    listener = bind("127.0.0.1", port)
    await web.SockSite(runner, listener).start()
    return runner, f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def background_loop() -> Iterator[Callable[[Engine], str]]:
    """Gives a function that starts an engine on a real socket in a thread of its own, and returns its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runners = []

    def start(engine: Engine) -> str:
        runner, url = asyncio.run_coroutine_threadsafe(serve(engine), loop).result(PATIENCE)
        runners.append(runner)
        return url

    yield start
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
