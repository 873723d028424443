"""HTTP servers of scores: POST /score of a reward model, POST /likelihood of a frozen language model, GET /health."""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic

from aiohttp import web

from megatron_lwz.data.markup import Markup
from megatron_lwz.data.preferences.rendering import Reply
from megatron_lwz.http.hosts import Hosts
from megatron_lwz.http.server import make_app, read_object
from megatron_lwz.rewards.continued_text import Template, context
from megatron_lwz.rewards.scorer import Overloaded, ScoringThread, Text
from megatron_lwz.rewards.served_model import Continued, ServedLanguageModel, ServedModel, ServedRewardModel

log = logging.getLogger(__name__)

MOST_TEXTS = 4096
"""Maximum number of texts of one request."""


class ModelServer(ABC, Generic[Text]):
    """One route on top of a ScoringThread. It answers

        {"model", "version", "scores": [number or null …], "tokens": [int …], "errors": {place: reason}}

    A text that is empty or too long gets null and a reason. The other texts get their scores.
    """

    route: str

    def __init__(self, model: ServedModel, thread: ScoringThread[Text], *, name: str) -> None:
        self._served = model
        self._thread = thread
        self._name = name

    def app(self, token: str | None, hosts: Hosts | None = None) -> web.Application:
        """Returns the application. With `token`, every route but /health requires it. `hosts`: see make_app."""
        routes = [web.get("/health", self._health), web.post(self.route, self._score)]
        return make_app(routes, token=token, hosts=hosts)

    @abstractmethod
    def read(self, body: dict[str, Any]) -> list[Text]:
        """Returns the texts of a request; `len` is 0 for an empty one. Raises ValueError. Runs in a thread."""

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "status": "ok",
                "model": self._name,
                "version": self._served.checksum,
                "max_length": self._served.max_length,
                "waiting": self._thread.waiting,
                "packs": self._thread.packs,
            }
        )

    async def _score(self, request: web.Request) -> web.Response:
        try:
            texts = await asyncio.to_thread(self.read, await read_object(request))
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        errors = {place: reason for place, text in enumerate(texts) if (reason := self._fault(len(text)))}
        asked = [place for place in range(len(texts)) if place not in errors]
        try:
            futures = self._thread.submit([texts[place] for place in asked])
        except Overloaded:
            raise web.HTTPServiceUnavailable(
                text=f"{self._thread.waiting} texts wait already", headers={"Retry-After": "1"}
            ) from None
        scores: list[float | None] = [None] * len(texts)
        found = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        for place, score in zip(asked, found, strict=True):
            if isinstance(score, BaseException):
                log.error("text of %d tokens failed: %r", len(texts[place]), score)
                errors[place] = "the model failed on it, see the server's log"
            elif math.isfinite(score):
                scores[place] = score
            else:
                errors[place] = f"its score is {score}"
        return web.json_response(
            {
                "model": self._name,
                "version": self._served.checksum,
                "scores": scores,
                "tokens": [len(text) for text in texts],
                "errors": {str(place): reason for place, reason in sorted(errors.items())},
            }
        )

    def _fault(self, length: int) -> str:
        if length == 0:
            return "empty"
        return f"{length} tokens, at most {self._served.max_length}" if length > self._served.max_length else ""


class ScoreServer(ModelServer[Sequence[int]]):
    """The scores of whole texts, by a reward model.

        POST /score {"items": [{"prompt", "answer", "thinking"?} …]} or {"texts": [whole text …]}

    The server renders items, and control tokens spelled out in them are text. Whole texts were rendered by the client:
    control tokens in them are meant.
    """

    route = "/score"

    def __init__(self, model: ServedRewardModel, thread: ScoringThread[Sequence[int]], *, name: str) -> None:
        super().__init__(model, thread, name=name)
        self._model = model

    def read(self, body: dict[str, Any]) -> list[Sequence[int]]:
        """Returns the tokens of the whole texts. Raises ValueError."""
        return [self._model.tokenizer.encode(text) for text in self._texts(body)]

    def _texts(self, body: dict[str, Any]) -> list[str]:
        items, texts = body.get("items"), body.get("texts")
        given = items if items is not None else texts
        if (items is None) == (texts is None) or not isinstance(given, list):
            raise ValueError('the body needs a list "items" or a list "texts"')
        check_number(given)
        if items is None:
            if not all(isinstance(text, str) for text in given):
                raise ValueError('"texts" must hold strings')
            return [Markup(text) for text in given]
        return [self._render(item, place) for place, item in enumerate(given)]

    def _render(self, item: Any, place: int) -> str:
        prompt, answer, thinking = strings(item, place, ("prompt", "answer"), "thinking")
        return self._model.rendering(prompt, Reply(answer, thinking))


class LikelihoodServer(ModelServer[Continued]):
    """How likely a text is after a request, with or without what was written for it, by a frozen language model.

        POST /likelihood {"items": [{"prompt", "continuation", "written"?} …], "longest"?: int}

    A score is the mean log-prob of the continuation's tokens, in nats per token; of its first `longest` tokens, if that
    is given. `rewards/continued_text.py` has the rendering. Control tokens spelled out in an item are text. The
    continuation is tokenised alone, so its tokens are the same after any context.
    """

    route = "/likelihood"

    def __init__(
        self, model: ServedLanguageModel, thread: ScoringThread[Continued], *, name: str, template: Template = "text"
    ) -> None:
        super().__init__(model, thread, name=name)
        self._encode = model.tokenizer.encode
        self._template = template

    def read(self, body: dict[str, Any]) -> list[Continued]:
        """Returns contexts and continuations. Raises ValueError."""
        items, longest = body.get("items"), body.get("longest")
        if not isinstance(items, list):
            raise ValueError('the body needs a list "items"')
        check_number(items)
        if longest is not None and (type(longest) is not int or longest < 1):
            raise ValueError('"longest" must be a whole number above 0')
        found = []
        for place, item in enumerate(items):
            prompt, continuation, written = strings(item, place, ("prompt", "continuation"), "written")
            tokens = tuple(self._encode(continuation)[:longest])
            before = tuple(self._encode(context(self._template, prompt, written))) if tokens else ()
            found.append(Continued(before, tokens))
        return found


def check_number(texts: Sequence[Any]) -> None:
    """Raises ValueError for more texts than one request may hold."""
    if len(texts) > MOST_TEXTS:
        raise ValueError(f"{len(texts)} texts: at most {MOST_TEXTS} in one request")


def strings(item: Any, place: int, needed: tuple[str, str], optional: str) -> tuple[str, str, str]:
    """Returns the two needed strings of an item, and the optional one, "" without it. Raises ValueError."""
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in needed):
        raise ValueError(f'item {place}: needs the strings "{needed[0]}" and "{needed[1]}"')
    more = item.get(optional) or ""
    if not isinstance(more, str):
        raise ValueError(f'item {place}: "{optional}" must be a string')
    return item[needed[0]], item[needed[1]], more
