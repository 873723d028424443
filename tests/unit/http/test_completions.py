"""A streamed answer of an OpenAI-compatible server: it ends when the server says so, and never hangs."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web

from megatron_lwz.http.completions import Completion, CompletionClient
from megatron_lwz.http.ports import bind
from megatron_lwz.http.retry import Failure, RequestFailure

TEXT = b'data: {"choices": [{"delta": {"content": "word"}, "finish_reason": "stop"}]}\n\n'


def ask(*, first: bytes, then: bytes, timeout: float) -> Completion:
    """Asks a server that sends `first`, and `then` for ever."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(first)
        while True:
            await response.write(then)
            await asyncio.sleep(0.02)

    async def run() -> Completion:
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", answer)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        listener = bind("127.0.0.1", 0)
        await web.SockSite(runner, listener).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with CompletionClient(url, None, model="m", timeout=timeout) as client:
                return await client.complete("prompt", settings={}, heard=lambda text, tokens: None)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


@pytest.mark.parametrize("drip", [b": waiting\n\n", b'data: {"choices": [{"delta": {}}]}\n\n', b"d"])
def test_bytes_without_text_do_not_keep_an_answer_alive(drip):
    begun = time.monotonic()
    with pytest.raises(RequestFailure, match=r"sends bytes but no text for 0\.3 s") as caught:
        ask(first=TEXT, then=drip, timeout=0.3)
    assert caught.value.kind is Failure.TIMEOUT and time.monotonic() - begun < 20


def test_what_comes_after_the_end_is_not_waited_for():
    done = ask(first=TEXT + b"data: [DONE]\n\n", then=b": more\n\n", timeout=30.0)
    assert (done.text, done.finish_reason) == ("word", "stop")
