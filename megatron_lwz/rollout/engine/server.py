"""vLLM's routes on top of an engine thread."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from aiohttp import web

from megatron_lwz.data.markup import Markup
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.http.hosts import Hosts
from megatron_lwz.http.server import make_app, read_object
from megatron_lwz.models.decoding_cache import CachedSequence
from megatron_lwz.rollout.engine.core import CACHE, WEIGHTS, EngineThread
from megatron_lwz.rollout.engine.generation import Delta, EndRules, Generation
from megatron_lwz.rollout.engine.protocol import (
    LOGPROBS_MODE,
    AnswerWriter,
    CompletionRequest,
    parse_request,
    usage,
)
from megatron_lwz.rollout.limits import write_load
from megatron_lwz.types import FinishReason
from megatron_lwz.units import MIB

DISCONNECT_POLL_SECONDS = 1.0
BODY_BYTES, BYTES_PER_TOKEN = MIB, 64
"""Largest body: so much, and so much for each token of the context. A token may be a text of JSON escapes."""


class EngineServer:
    """The HTTP side of an engine. `vocab_size` is the model's, `max_length` counts prompt + response tokens.

    Weights are loaded from `weights_folders` and the folders below them only.
    """

    def __init__(
        self,
        engine: EngineThread,
        tokenizer: Tokenizer,
        *,
        name: str,
        vocab_size: int,
        max_length: int,
        weights_folders: Sequence[Path],
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._name = name
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._weights_folders = tuple(folder.resolve() for folder in weights_folders)
        self._started = int(time.time())

    def app(self, token: str | None, hosts: Hosts | None = None) -> web.Application:
        """Returns the application. With `token`, every route but /health requires it. `hosts`: see make_app."""
        routes = [
            web.get("/health", self._health),
            web.get("/metrics", self._metrics),
            web.get("/v1/models", self._models),
            web.post("/v1/completions", self._completions),
            web.post("/pause", self._pause),
            web.post("/resume", self._resume),
            web.get("/is_paused", self._is_paused),
            web.post("/sleep", self._sleep),
            web.post("/wake_up", self._wake_up),
            web.get("/is_sleeping", self._is_sleeping),
            web.post("/abort_requests", self._abort),
            web.post("/reset_prefix_cache", self._reset_prefix_cache),
            web.post("/collective_rpc", self._collective_rpc),
            web.post("/update_weight_version", self._update_weight_version),
            web.get("/weight_info", self._weight_info),
            web.post("/weight_checker", self._weight_checker),
        ]
        return make_app(
            routes, token=token, hosts=hosts, max_body_bytes=BODY_BYTES + BYTES_PER_TOKEN * self._max_length
        )

    async def _health(self, _: web.Request) -> web.Response:
        if self._engine.failure:
            return web.json_response({"status": "failed", "error": self._engine.failure}, status=503)
        return web.json_response({"status": "ok"})

    async def _models(self, _: web.Request) -> web.Response:
        entry = {
            "id": self._name,
            "object": "model",
            "created": self._started,
            "owned_by": "megatron-lwz",
            "max_model_len": self._max_length,
            "logprobs_mode": LOGPROBS_MODE,
        }
        return web.json_response({"object": "list", "data": [entry]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request)
        try:
            asked = parse_request(body)
            prompt = self._read_prompt(asked)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        if asked.model not in (None, self._name):
            raise web.HTTPNotFound(text=f"no model {asked.model!r} here: use {self._name!r}")
        request_id = asked.request_id or request.headers.get("X-Request-Id") or f"cmpl-{uuid.uuid4().hex}"
        deltas: asyncio.Queue[Delta] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        generation = Generation(
            request_id,
            CachedSequence(
                prompt, asked.temperature, asked.top_p, secrets.randbits(63) if asked.seed is None else asked.seed
            ),
            self._end_rules(asked),
            decode=self._tokenizer.decode,
            deliver=lambda delta: _post(loop, deltas, delta),
        )
        writer = AnswerWriter(asked, request_id=request_id, model=self._name, created=int(time.time()))
        async with aclosing(self._deltas(request, generation, deltas)) as stream:
            if asked.stream:
                return await _stream(request, asked, writer, stream, prompt)
            return web.json_response(writer.whole([delta async for delta in stream], prompt))

    async def _deltas(
        self, request: web.Request, generation: Generation, deltas: asyncio.Queue[Delta]
    ) -> AsyncGenerator[Delta, None]:
        """Yields the request's deltas up to the last. A client that disconnects, or stops reading, ends the request."""
        try:
            await asyncio.wrap_future(self._engine.submit(generation))
        except RuntimeError as error:
            raise web.HTTPServiceUnavailable(text=f"the engine failed: {error}") from error
        finished = False
        try:
            while not finished:
                if request.transport is None or request.transport.is_closing():  # nothing else tells, without `stream`
                    raise ConnectionResetError("the client went away")
                try:
                    async with asyncio.timeout(DISCONNECT_POLL_SECONDS):
                        delta = await deltas.get()
                except TimeoutError:
                    continue
                finished = delta.reason is not None
                if delta.reason is FinishReason.ABORT and self._engine.failure:
                    raise web.HTTPServiceUnavailable(text=f"the engine failed: {self._engine.failure}")
                yield delta
        finally:
            if not finished:
                self._engine.discard(generation)

    def _read_prompt(self, asked: CompletionRequest) -> tuple[int, ...]:
        """Returns the token ids of the prompt. Raises ValueError if this model cannot take them."""
        prompt = tuple(self._tokenizer.encode(asked.prompt) if isinstance(asked.prompt, str) else asked.prompt)
        if not prompt:
            raise ValueError("prompt: must hold at least one token")
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < self._vocab_size:
                raise ValueError(f"prompt: token id {token} is outside the vocabulary of {self._vocab_size}")
        if len(prompt) + asked.max_tokens > self._max_length:
            raise ValueError(
                f"max_tokens = {asked.max_tokens}: with the prompt's {len(prompt)} tokens this is more than "
                f"the engine's {self._max_length} (--max-length)"
            )
        return prompt

    def _end_rules(self, asked: CompletionRequest) -> EndRules:
        """Returns when the request ends.

        A stop string that is a special token never appears in the text, so its id is used.
        """
        ends: dict[int, str | int | None] = {} if asked.ignore_eos else dict.fromkeys(self._tokenizer.eos_ids)
        ends.update({token: token for token in asked.stop_token_ids or ()})
        strings = []
        for stop in asked.stop_strings():
            ids = self._tokenizer.encode(Markup(stop))
            if len(ids) == 1 and not self._tokenizer.decode(ids):
                ends[ids[0]] = stop
            else:
                strings.append(stop)
        return EndRules(asked.max_tokens, ends, strings, asked.include_stop_str_in_output)

    async def _pause(self, request: web.Request) -> web.Response:
        mode = request.query.get("mode", "abort")
        if mode not in ("keep", "abort"):
            raise web.HTTPBadRequest(text=f"mode = {mode}: use keep (requests stay) or abort (requests end)")
        await asyncio.wrap_future(self._engine.pause(abort=mode == "abort"))
        if request.query.get("clear_cache", "").lower() in ("1", "true"):
            await asyncio.wrap_future(self._engine.forget_prefixes())
        return web.json_response({"status": "paused"})

    async def _resume(self, _: web.Request) -> web.Response:
        await asyncio.wrap_future(self._engine.resume())
        return web.json_response({"status": "resumed"})

    async def _is_paused(self, _: web.Request) -> web.Response:
        return web.json_response({"is_paused": self._engine.paused})

    async def _sleep(self, request: web.Request) -> web.Response:
        level = request.query.get("level", "1")
        if level not in ("1", "2"):
            raise web.HTTPBadRequest(
                text=f"level = {level}: use 1 (weights stay in host memory) or 2 (they are dropped)"
            )
        await asyncio.wrap_future(self._engine.sleep(keep_weights=level == "1"))
        return web.json_response({"status": "sleeping", "level": int(level)})

    async def _wake_up(self, request: web.Request) -> web.Response:
        tags = request.query.getall("tags", [])
        unknown = set(tags) - {WEIGHTS, CACHE}
        if unknown:
            raise web.HTTPBadRequest(text=f"tags = {sorted(unknown)[0]}: use {WEIGHTS} or {CACHE}")
        await asyncio.wrap_future(self._engine.wake_up(tags))
        return web.json_response({"status": "sleeping" if self._engine.asleep else "awake", "tags": tags or None})

    async def _is_sleeping(self, _: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": bool(self._engine.asleep)})

    async def _abort(self, request: web.Request) -> web.Response:
        ids = (await read_object(request)).get("request_ids") if request.can_read_body else None
        if ids is not None and not _is_strings(ids):
            raise web.HTTPBadRequest(text="request_ids: must be a list of strings; leave it out to end all requests")
        count = await asyncio.wrap_future(self._engine.abort(None if ids is None else frozenset(ids)))
        return web.json_response({"status": "ok", "aborted": count})

    async def _reset_prefix_cache(self, _: web.Request) -> web.Response:
        await asyncio.wrap_future(self._engine.forget_prefixes())
        return web.json_response({"status": "ok"})

    async def _collective_rpc(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        given = body.get("kwargs")
        path = given.get("weights_path") if isinstance(given, dict) else None
        if body.get("method") != "reload_weights" or not isinstance(path, str):
            raise web.HTTPBadRequest(text='only {"method": "reload_weights", "kwargs": {"weights_path": DIR}} is known')
        try:
            await asyncio.wrap_future(self._engine.reload(str(self._allowed(path))))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise web.HTTPBadRequest(text=f"weights_path = {path[:200]!a}: cannot be read ({reason})") from error
        return web.json_response({"results": [None]})

    def _allowed(self, path: str) -> Path:
        """Returns the folder that a request names, without symbolic links. Answers 400 and 403 for other paths."""
        try:
            folder = Path(path).resolve()
            folder.is_dir()
        except (OSError, ValueError, RuntimeError) as error:  # a NUL byte, a name too long, a loop of links
            raise web.HTTPBadRequest(text=f"weights_path = {path[:200]!a}: is no path ({error!s:.80})") from error
        if not any(folder.is_relative_to(allowed) for allowed in self._weights_folders):
            raise web.HTTPForbidden(
                text=f"weights_path = {path[:200]!a}: not below a folder that this engine was started with (--weights-dir)"
            )
        return folder

    async def _update_weight_version(self, request: web.Request) -> web.Response:
        version = (await read_object(request)).get("new_version")
        if not isinstance(version, str):
            raise web.HTTPBadRequest(text=f"new_version = {version!r}: must be a string")
        await asyncio.wrap_future(self._engine.set_version(version))
        return web.json_response({"success": True, "new_version": version})

    async def _weight_info(self, _: web.Request) -> web.Response:
        load = await asyncio.wrap_future(self._engine.load())
        answer = {"weight_version": self._engine.version, "running": load.running, "waiting": load.waiting}
        return web.json_response(answer)

    async def _metrics(self, _: web.Request) -> web.Response:
        text = write_load(await asyncio.wrap_future(self._engine.load()), model=self._name)
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _weight_checker(self, request: web.Request) -> web.Response:
        action = (await read_object(request)).get("action")
        if action != "checksum":
            raise web.HTTPBadRequest(text=f"action = {action!r}: only 'checksum' is known")
        return web.json_response({"checksum": await asyncio.wrap_future(self._engine.checksum())})


async def _stream(
    request: web.Request,
    asked: CompletionRequest,
    writer: AnswerWriter,
    deltas: AsyncGenerator[Delta, None],
    prompt: tuple[int, ...],
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    count, first = 0, prompt if asked.return_token_ids else None
    options = asked.stream_options or {}
    try:
        async for delta in deltas:
            count += len(delta.tokens)
            chunk = writer.chunk(delta, prompt=first)
            if options.get("continuous_usage_stats"):
                chunk["usage"] = usage(len(prompt), count)
            await response.write(_event(chunk))
            first = None
    except web.HTTPServiceUnavailable as error:  # it is too late for an HTTP status
        await response.write(_event({"error": {"message": error.text, "type": "server_error", "code": error.status}}))
    if options.get("include_usage"):
        await response.write(_event(writer.last(len(prompt), count)))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _post(loop: asyncio.AbstractEventLoop, deltas: asyncio.Queue[Delta], delta: Delta) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(deltas.put_nowait, delta)


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _is_strings(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
