"""HTTP server of the reward model: POST /score, GET /health."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

from aiohttp import web

from megatron_lwz.data.markup import Markup
from megatron_lwz.data.preferences.rendering import Reply
from megatron_lwz.http.hosts import Hosts
from megatron_lwz.http.server import make_app, read_object
from megatron_lwz.rewards.scorer import Overloaded, ScoringThread, ServedRewardModel

log = logging.getLogger(__name__)

MOST_TEXTS = 4096
"""Maximum number of texts of one request."""


class ScoreServer:
    """Routes on top of a ScoringThread.

        POST /score {"items": [{"prompt", "answer", "thinking"?} …]} or {"texts": [whole text …]} →
        {"model", "version", "scores": [number or null …], "tokens": [int …], "errors": {place: reason}}

    A text that is empty or too long gets null and a reason. The other texts get their scores. The server renders items,
    and control tokens spelled out in them are text. Whole texts were rendered by the client: control tokens in them are
    meant.
    """

    def __init__(self, model: ServedRewardModel, thread: ScoringThread, *, name: str) -> None:
        self._model = model
        self._thread = thread
        self._name = name

    def app(self, token: str | None, hosts: Hosts | None = None) -> web.Application:
        """Returns the application. With `token`, every route but /health requires it. `hosts`: see make_app."""
        return make_app([web.get("/health", self._health), web.post("/score", self._score)], token=token, hosts=hosts)

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "status": "ok",
                "model": self._name,
                "version": self._model.checksum,
                "max_length": self._model.max_length,
                "waiting": self._thread.waiting,
                "packs": self._thread.packs,
            }
        )

    async def _score(self, request: web.Request) -> web.Response:
        try:
            texts = self._texts(await read_object(request))
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        encoded = await asyncio.to_thread(lambda: [self._model.tokenizer.encode(text) for text in texts])
        errors = {place: reason for place, ids in enumerate(encoded) if (reason := self._fault(len(ids)))}
        asked = [place for place in range(len(encoded)) if place not in errors]
        try:
            futures = self._thread.submit([encoded[place] for place in asked])
        except Overloaded:
            raise web.HTTPServiceUnavailable(
                text=f"{self._thread.waiting} texts wait already", headers={"Retry-After": "1"}
            ) from None
        scores: list[float | None] = [None] * len(encoded)
        found = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        for place, score in zip(asked, found, strict=True):
            if isinstance(score, BaseException):
                log.error("text of %d tokens failed: %r", len(encoded[place]), score)
                errors[place] = "the model failed on it, see the server's log"
            elif math.isfinite(score):
                scores[place] = score
            else:
                errors[place] = f"its score is {score}"
        return web.json_response(
            {
                "model": self._name,
                "version": self._model.checksum,
                "scores": scores,
                "tokens": [len(ids) for ids in encoded],
                "errors": {str(place): reason for place, reason in sorted(errors.items())},
            }
        )

    def _texts(self, body: dict[str, Any]) -> list[str]:
        """Returns the whole texts of a request. Raises ValueError."""
        items, texts = body.get("items"), body.get("texts")
        given = items if items is not None else texts
        if (items is None) == (texts is None) or not isinstance(given, list):
            raise ValueError('the body needs a list "items" or a list "texts"')
        if len(given) > MOST_TEXTS:
            raise ValueError(f"{len(given)} texts: at most {MOST_TEXTS} in one request")
        if items is None:
            if not all(isinstance(text, str) for text in given):
                raise ValueError('"texts" must hold strings')
            return [Markup(text) for text in given]
        return [self._render(item, place) for place, item in enumerate(given)]

    def _render(self, item: Any, place: int) -> str:
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("prompt"), str)
            or not isinstance(item.get("answer"), str)
        ):
            raise ValueError(f'item {place}: needs the strings "prompt" and "answer"')
        thinking = item.get("thinking") or ""
        if not isinstance(thinking, str):
            raise ValueError(f'item {place}: "thinking" must be a string')
        return self._model.rendering(item["prompt"], Reply(item["answer"], thinking))

    def _fault(self, length: int) -> str:
        if length == 0:
            return "empty"
        return f"{length} tokens, at most {self._model.max_length}" if length > self._model.max_length else ""
