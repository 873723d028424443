"""A real HTTP server that speaks OpenAI's chat and completions routes and answers from a script."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import make_app, read_object
from tests.support.waiting import PATIENCE

KEY = "secret-key"


@dataclass
class Scripted:
    """`answer(prompt, number)` gives the reply's text, or a whole response for what goes wrong; it may be async.

    `number` counts from 0. `delay` seconds before each answer, `pace` before each piece of a stream. `most` is the largest number of requests that were answered at the same time.
    """

    answer: Callable[[str, int], str | web.StreamResponse | Awaitable[str | web.StreamResponse]]
    delay: float = 0.0
    pace: float = 0.0
    finish: str = "stop"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    open: int = 0
    most: int = 0
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request)
        number = len(self.bodies)
        self.bodies.append(body)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(self.delay)
            chat = request.path.endswith("/chat/completions")
            prompt = body["messages"][-1]["content"] if chat else body["prompt"]
            said = self.answer(prompt, number)
            if inspect.isawaitable(said):
                said = await said
            if isinstance(said, web.StreamResponse):
                return said
            return await self._say(request, body, said, chat)
        finally:
            self.open -= 1

    async def _say(self, request: web.Request, body: dict[str, Any], text: str, chat: bool) -> web.StreamResponse:
        head = {"model": "scripted-1", "usage": {"prompt_tokens": 100, "completion_tokens": 10}}
        if not body.get("stream"):
            written = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            return web.json_response({**head, "choices": [{**written, "finish_reason": self.finish}]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        pieces = [text[place : place + 7] for place in range(0, len(text), 7)]
        for piece in pieces:
            await asyncio.sleep(self.pace)
            choice = {"delta": {"content": piece}} if chat else {"text": piece}
            await response.write(f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode())
        last = {"delta": {}} if chat else {"text": ""}
        end = {**head, "choices": [{**last, "finish_reason": self.finish}]}
        await response.write(f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n".encode())
        return response


@contextmanager
def serving(*servers: Scripted) -> Iterator[None]:
    """Serves each on a socket of its own, in a thread; their `url` is set."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start(server: Scripted) -> web.AppRunner:
        routes = [
            web.post(path, server.handle)
            for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/likelihood")
        ]
        runner = web.AppRunner(make_app(routes, token=KEY), shutdown_timeout=0.1)
        await runner.setup()
        listener = bind("127.0.0.1", 0)
        await web.SockSite(runner, listener).start()
        server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return runner

    runners = [asyncio.run_coroutine_threadsafe(start(server), loop).result(PATIENCE) for server in servers]
    try:
        yield
    finally:
        for runner in runners:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
