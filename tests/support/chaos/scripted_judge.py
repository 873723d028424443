"""A reward model's server without a model: `python -m tests.support.chaos.scripted_judge CONTROL PORT`.

The score of an answer is a function of its text, so it does not depend on how often it was asked for. The shared control says
when the server answers nothing, or fails.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

from aiohttp import web

from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import make_app, read_object
from tests.support.chaos.control import FAILING, HANGING, Control
from tests.support.synthetic_engine import TOKEN


def scripted_score(answer: str) -> float:
    """From 0 to 1."""
    return int.from_bytes(hashlib.blake2b(answer.encode(), digest_size=2).digest(), "big") / 65535


async def _main(path: Path, port: int) -> None:
    board = Control(path)

    async def score(request: web.Request) -> web.Response:
        items = (await read_object(request))["items"]
        while board.judge == HANGING:
            await asyncio.sleep(0.02)
        if board.judge == FAILING:
            return web.json_response({"error": {"message": "no room"}}, status=500)
        scores = [scripted_score(item["answer"]) for item in items]
        return web.json_response({"model": "scripted", "version": "1", "scores": scores})

    runner = web.AppRunner(make_app([web.post("/score", score)], token=TOKEN), shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, bind("127.0.0.1", port)).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2])))
