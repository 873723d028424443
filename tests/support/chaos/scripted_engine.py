"""An engine without a model, in a process of its own: `python -m tests.support.chaos.scripted_engine CONTROL PORT PAUSE`.

Each token is a function of (seed, position), so what a run trains on does not depend on who dies when. It speaks the
contract of the embedded engine. Faults of connections come from the shared control; what an engine may *say* wrongly
(ids, log-probs, streams) has its place in `Scripted.distort`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from megatron_lwz.types import WeightVersion
from tests.support.chaos.control import DROPPING, HOLDING, SERVING, SILENT, Control
from tests.support.grpo_runs import END_OF_TEXT
from tests.support.synthetic_engine import Engine, serve, written_logprob


class Scripted(Engine):
    """The engine of the tests, with ids of the tests' tokenizer and a checksum that it was told."""

    board: Control

    async def complete(self, request: web.Request) -> web.StreamResponse:
        await self._obey(request)
        return await super().complete(request)

    async def control(self, request: web.Request) -> web.Response:
        if self.board.engine != HOLDING:
            await self._obey(request)
        if request.path == "/weight_checker":
            return web.json_response({"checksum": WeightVersion.parse(self.version).checksum})
        return await super().control(request)

    async def _obey(self, request: web.Request) -> None:
        """Does with the connection what the control says."""
        while (mode := self.board.engine) != SERVING:
            if mode in (DROPPING, SILENT):
                with suppress(AttributeError):
                    request.transport.abort()
                raise asyncio.CancelledError
            await asyncio.sleep(0.02)

    async def _stream(self, request: web.Request, response: web.StreamResponse, body: dict[str, Any], cut: Any) -> None:
        seed, position = body["seed"], len(body["prompt"])
        last = position + body["max_tokens"]
        reason = None
        while reason is None:
            await self._obey(request)
            tokens, logprobs = [], []
            while len(tokens) < self.delta and reason is None:
                tokens.append(scripted_token(seed, position))
                logprobs.append(written_logprob(seed, position))
                position += 1
                if tokens[-1] == END_OF_TEXT:
                    reason = "stop"
                elif position == last:
                    reason = "length"
            choice = {"index": 0, "text": "", "token_ids": tokens, "logprobs": {"token_logprobs": logprobs}}
            chunk = self.distort({"choices": [choice | {"finish_reason": reason, "stop_reason": None}]})
            if self.version:
                chunk["weight_version"] = self.version
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await asyncio.sleep(self.pause)
        await response.write(b"data: [DONE]\n\n")

    def distort(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """Returns what is sent in place of this chunk: the place for engines that say something wrong."""
        return chunk


ANSWER_TAG = "<answer>"
"""A token after those of `write_example`, so that most rollouts have an answer that can be scored."""


def scripted_token(seed: int, position: int) -> int:
    """The token at an absolute position: a byte, the end of text in one of 40 cases, the tag in one of 12."""
    value = int.from_bytes(hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=4).digest(), "big")
    if value % 40 == 0:
        return END_OF_TEXT
    return END_OF_TEXT + 1 if value // 40 % 12 == 0 else value // 480 % 256


async def _main(control: Path, port: int, pause: float) -> None:
    engine = Scripted(pause=pause, version="0.0.")
    engine.board = Control(control)
    await serve(engine, port)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
