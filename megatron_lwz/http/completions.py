"""Client for an OpenAI-compatible server: chat or completions, whole or streamed answers, failures with a class."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp

from megatron_lwz.decoding import OTHER_SHAPE, decode_json
from megatron_lwz.errors import EngineError, concealed
from megatron_lwz.http.retry import Failure, RequestFailure, no_connection
from megatron_lwz.http.session import HttpSession, is_address, quoted, read_bounded
from megatron_lwz.http.sse import EventParser
from megatron_lwz.units import MIB

Api = Literal["chat", "completions"]
Heard = Callable[[str, int], None]
"""Callback that receives every piece of a streamed answer, and the server's token count so far (0: not given)."""

CONNECT_SECONDS = 10.0
MAX_ANSWER_BYTES = 32 * MIB
LONGEST_WAIT = 120.0
"""Maximum wait in seconds that is granted to a server's Retry-After."""

_MOST_TOKENS = 1 << 31


@dataclass(frozen=True)
class Completion:
    """A server's answer. `thinking` is reasoning that the server returns separately.

    `stop` is the stop string, if the server names it. `finish_reason` is the server's own value ("stop", "length" …).
    Token counts are 0 when the server does not give them.
    """

    text: str
    finish_reason: str | None
    stop: str | None = None
    thinking: str = ""
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class CompletionFailure(RequestFailure):
    """A RequestFailure with `retry_after`, the seconds that the server asked to wait (0 if it did not ask)."""

    def __init__(self, url: str, advice: str, kind: Failure, retry_after: float = 0.0) -> None:
        super().__init__(url, advice, kind)
        self.retry_after = retry_after


class CompletionClient(HttpSession):
    """Client of one server, inside one event loop.

    `url` is the address with or without its path: `http://host:8000` means `http://host:8000/v1`.
    `timeout` is in seconds: for a whole answer, or between two pieces of text of a streamed one. Redirects are not followed, so
    the key is sent to `url` only. `key_name` is the environment variable of the key, for the error message. Raises
    EngineError if `url` is no address.
    """

    def __init__(
        self, url: str, key: str | None, *, model: str, api: Api = "chat", timeout: float = 600.0, key_name: str = ""
    ) -> None:
        if not is_address(url):
            raise EngineError(url, "not an address: write http://host:port, or https://host/path")
        self.url = url.rstrip("/") if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1"
        super().__init__(key)
        self.model = model
        self._api = api
        self._timeout = timeout
        self._key_name = key_name

    async def complete(
        self,
        prompt: str | Sequence[int],
        *,
        system: str | None = None,
        settings: Mapping[str, Any],
        heard: Heard | None = None,
    ) -> Completion:
        """Requests a completion of `prompt`: a text or, for the completions API, token ids.

        `settings` go into the body unchanged (`max_tokens`, `temperature` …). With `heard`, the answer is streamed, and
        `heard` is called with each piece, including thinking that the server returns separately. Raises
        CompletionFailure.
        """
        body = {"model": self.model, **self._input(prompt, system), **settings}
        if heard is not None:
            options = {"include_usage": True} | ({"continuous_usage_stats": True} if self.continues else {})
            body |= {"stream": True, "stream_options": options}
        route = "/chat/completions" if self._api == "chat" else "/completions"
        timeout = aiohttp.ClientTimeout(
            total=self._timeout if heard is None else None, sock_connect=CONNECT_SECONDS, sock_read=self._timeout
        )
        try:
            async with self.session.post(
                self.url + route, json=body, timeout=timeout, allow_redirects=False
            ) as response:
                await self._check(response)
                if heard is not None and response.content_type != "application/json":
                    return await self._read_stream(response, heard)
                done = self._read_whole(await read_bounded(response, MAX_ANSWER_BYTES))
                if heard is not None:  # a server that does not stream
                    heard(done.text + done.thinking, done.completion_tokens)
                return done
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._translate(error) from error

    @property
    def continues(self) -> bool:
        """Whether the server continues a given text. With the chat API, it begins a new message instead."""
        return self._api == "completions"

    def _input(self, prompt: str | Sequence[int], system: str | None) -> dict[str, Any]:
        if self._api == "completions":
            return {"prompt": f"{system}\n\n{prompt}" if system else prompt}
        assert isinstance(prompt, str), "token ids have no place in a chat message"
        first = [{"role": "system", "content": system}] if system else []
        return {"messages": [*first, {"role": "user", "content": prompt}]}

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status == 200:
            return
        said = quoted(await read_bounded(response, MAX_ANSWER_BYTES), 300)
        advice = f"{response.method} {response.url.path} answered {status}: {said or response.reason}"
        if status in (401, 403) and self._key_name:
            advice += f" (does the environment variable {self._key_name} hold its key?)"
        busy = status >= 500 or status in (408, 429)
        wait = _seconds(response.headers.get("Retry-After")) if busy else 0.0
        raise CompletionFailure(self.url, advice, Failure.SERVER if busy else Failure.REFUSED, wait)

    def _read_whole(self, data: bytes) -> Completion:
        try:
            answer = decode_json(data)
            choice = answer["choices"][0]
            text, thinking = map(_clean, self._written(choice, "message"))
            tokens = _usage(answer)
            return Completion(text, _reason(choice), _stop(choice), thinking, _model(answer), *tokens)
        except OTHER_SHAPE as error:
            raise self._unknown(quoted(data, 80), error) from error

    async def _read_stream(self, response: aiohttp.ClientResponse, heard: Heard) -> Completion:
        parser = EventParser()
        texts: list[str] = []
        thoughts: list[str] = []
        reason: str | None = None
        stop: str | None = None
        model, tokens, size = "", (0, 0), 0
        read, advanced = 0, time.monotonic()
        done = False
        async for chunk in response.content.iter_any():
            for event in parser.feed(chunk):
                if done := event == "[DONE]":
                    break
                try:
                    part = decode_json(event)
                    if "error" in part:
                        raise CompletionFailure(
                            self.url, f"failed while writing: {concealed(str(part['error'])):.300}", Failure.SERVER
                        )
                    tokens = _usage(part) if part.get("usage") else tokens
                    model = _model(part) or model
                    for choice in part.get("choices") or ():
                        text, thinking = self._written(choice, "delta")
                        size += len(text) + len(thinking)
                        if size > MAX_ANSWER_BYTES:
                            raise ValueError(f"more than {MAX_ANSWER_BYTES} characters")
                        texts.append(text)
                        thoughts.append(thinking)
                        reason, stop = _reason(choice) or reason, _stop(choice) or stop
                        heard(text + thinking, tokens[1])
                except OTHER_SHAPE as error:
                    raise self._unknown(concealed(event)[:80], error) from error
            if done:
                break
            if size > read:
                read, advanced = size, time.monotonic()
            elif time.monotonic() - advanced > self._timeout:
                raise CompletionFailure(self.url, f"sends bytes but no text for {self._timeout:g} s", Failure.TIMEOUT)
        if reason is None:
            raise CompletionFailure(self.url, "the stream ended without a finish_reason", Failure.CONNECTION)
        return Completion(_clean("".join(texts)), reason, stop, _clean("".join(thoughts)), model, *tokens)

    def _written(self, choice: Mapping[str, Any], where: str) -> tuple[str, str]:
        """Returns (text, thinking) of one choice: a message or delta of chat, or the text of a completion."""
        if self._api == "completions":
            return str(choice.get("text") or ""), ""
        message = choice.get(where) or {}
        content = message.get("content") or ""
        if isinstance(content, list):  # content parts
            content = "".join(part.get("text") or "" for part in content)
        thinking = message.get("reasoning_content") or message.get("reasoning") or ""
        if not isinstance(content, str) or not isinstance(thinking, str):
            raise ValueError(f"content is {type(content).__name__}")
        return content, thinking

    def _unknown(self, said: object, error: Exception) -> CompletionFailure:
        return CompletionFailure(
            self.url, f"answered what OpenAI's contract does not know: {said!r} ({error!r})", Failure.CONTRACT
        )

    def _translate(self, error: Exception) -> CompletionFailure:
        if isinstance(error, CompletionFailure):
            return error
        if isinstance(error, asyncio.TimeoutError):
            return CompletionFailure(self.url, f"no answer within {self._timeout:g} s", Failure.TIMEOUT)
        if isinstance(error, (aiohttp.ClientError, OSError)):
            return CompletionFailure(self.url, no_connection(error), Failure.CONNECTION)
        return CompletionFailure(self.url, f"answered {error}", Failure.CONTRACT)


def _clean(text: str) -> str:
    """Makes a text storable: joins the halves of surrogate pairs, replaces lone surrogates."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _usage(answer: Mapping[str, Any]) -> tuple[int, int]:
    usage = answer.get("usage") or {}
    prompt, written = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    return min(max(prompt, 0), _MOST_TOKENS), min(max(written, 0), _MOST_TOKENS)


def _model(answer: Mapping[str, Any]) -> str:
    model = answer.get("model")
    return _clean(model)[:200] if isinstance(model, str) else ""


def _reason(choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return _clean(reason)[:200] if isinstance(reason, str) else None


def _stop(choice: Mapping[str, Any]) -> str | None:
    stop = choice.get("stop_reason")
    return _clean(stop) if isinstance(stop, str) else None


def _seconds(header: str | None) -> float:
    """Parses Retry-After in seconds. Returns 0 for its date form and for anything else."""
    try:
        return min(max(float(header or 0), 0.0), LONGEST_WAIT)
    except ValueError:
        return 0.0
