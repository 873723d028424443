"""A client for the embedded engine and vLLM: the part of vLLM's HTTP contract that RL needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import aiohttp

from megatron_lwz.decoding import decode_json
from megatron_lwz.http.retry import Failure, RequestFailure, no_connection
from megatron_lwz.http.session import HttpSession, quoted, read_bounded
from megatron_lwz.http.sse import EventParser
from megatron_lwz.rollout.chunks import LARGEST_VOCABULARY, ChunkReader
from megatron_lwz.rollout.events import StreamEnd, StreamEvent
from megatron_lwz.rollout.limits import EngineLoad, read_load
from megatron_lwz.rollout.open_stream import OpenStream
from megatron_lwz.rollout.tied_head import renews_tied_head
from megatron_lwz.rollout.version_tracker import LocalTracker, VersionTracker
from megatron_lwz.types import WeightVersion
from megatron_lwz.units import MIB

CONNECT_SECONDS = 10.0
MAX_ANSWER_BYTES = 32 * MIB
UNCHANGED = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling settings that leave the policy's distribution unchanged. Without them vLLM takes the values of the
model's generation_config.json (Qwen2.5: a repetition penalty of 1.05).
"""


class EngineClient(HttpSession):
    """A client of one engine, for use inside one event loop. All its failures are RequestFailure (EngineError).

    `timeout`: seconds without any byte, and of a stream without a new token, before a request counts as failed. An answer
    to another request may take that long after its first byte. `vocabulary`: size of the policy's vocabulary. `version`
    marks the tokens of engines whose streams do not name the weights (vLLM). `tracker` holds what other clients of the
    same engine already know.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        model: str = "policy",
        timeout: float = 600.0,
        vocabulary: int = LARGEST_VOCABULARY,
        tracker: VersionTracker | None = None,
    ) -> None:
        super().__init__(token, aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=timeout))
        self.url = url.rstrip("/")
        self.tracker = tracker or LocalTracker()
        self._model = model
        self._timeout = timeout
        self._vocabulary = vocabulary

    @property
    def has_token(self) -> bool:
        """Whether requests carry a token."""
        return bool(self._key)

    @property
    def version(self) -> WeightVersion:
        """Version of the weights that generate tokens now.

        All twins share it, because streams continue while another event loop pushes new weights.
        """
        return self.tracker.version

    @version.setter
    def version(self, version: WeightVersion) -> None:
        self.tracker.version = version

    def twin(self) -> EngineClient:
        """Returns a client of the same engine for another event loop."""
        return EngineClient(
            self.url,
            self._key,
            model=self._model,
            timeout=self._timeout,
            vocabulary=self._vocabulary,
            tracker=self.tracker,
        )

    async def stream(
        self,
        prompt_tokens: Sequence[int],
        *,
        request_id: str,
        seed: int,
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop: Sequence[str | int],
    ) -> AsyncGenerator[StreamEvent, None]:
        """Yields token deltas as the engine generates them, then one StreamEnd.

        Log-probs are rounded to fp32, as journaled. `stop`: strings and token ids that end the response. The tokens
        include the one that ended it. Raises RequestFailure if the stream breaks, stalls, or does not follow the
        contract.
        """
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt_tokens),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "stop": [end for end in stop if isinstance(end, str)],
            "stop_token_ids": [end for end in stop if isinstance(end, int)],
            **UNCHANGED,
            "stream": True,
            "logprobs": 0,  # the sampled token's only
            "return_token_ids": True,
            "request_id": request_id,
        }
        reader = ChunkReader(self.url, self._named, vocabulary=self._vocabulary)
        parser, stream = EventParser(), OpenStream()
        self.tracker.add_stream(stream)
        try:
            async with self._request("POST", "/v1/completions", body, request_id) as response:
                await self._check(response)
                stream.begin(response)
                heard = time.monotonic()
                while chunk := await stream.read():
                    for event in reader.read(parser.feed(chunk)):
                        yield event
                        if isinstance(event, StreamEnd):
                            return
                        heard = time.monotonic()  # after the consumer, which may hold the stream back
                    if time.monotonic() - heard > self._timeout:
                        raise self._failure(Failure.TIMEOUT, f"sends bytes but no token for {self._timeout:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._translate(error) from error
        finally:
            stream.end()
        raise self._failure(Failure.CONNECTION, "the stream ended without a finish_reason")

    def _named(self, version: object) -> WeightVersion:
        return parse_version(version, self.version)

    async def probe(self) -> None:
        """Returns if the engine answers and reports that it works. Raises RequestFailure otherwise."""
        await self.call("GET", "/health")

    async def load(self) -> EngineLoad | None:
        """Returns the engine's load, None if the engine does not report it."""
        try:
            return read_load(await self._text("GET", "/metrics"))
        except RequestFailure as failure:
            if failure.kind is Failure.REFUSED:
                return None
            raise

    async def models(self) -> dict[str, Any]:
        """Returns the served model's entry of /v1/models (`logprobs_mode`, `max_model_len` …, as far as reported)."""
        entries = (await self.call("GET", "/v1/models")).get("data")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("id") == self._model:
                return entry
        raise self._failure(Failure.CONTRACT, f"serves no model named {self._model!r}: start it with that name")

    async def logprobs_mode(self) -> str:
        """Returns vLLM's --logprobs-mode. Raises RequestFailure if the engine does not report it."""
        info = await self.server_info()
        if info is None:
            advice = "does not say how it takes log-probs: start vLLM with VLLM_SERVER_DEV_MODE=1"
            raise self._failure(Failure.REFUSED, advice)
        try:
            return str(info["vllm_config"]["model_config"]["logprobs_mode"])
        except (KeyError, TypeError):
            raise self._failure(Failure.CONTRACT, "/server_info names no logprobs_mode") from None

    async def server_info(self) -> dict[str, Any] | None:
        """Returns vLLM's configuration and environment, None if the engine does not report them."""
        try:
            return await self.call("GET", "/server_info?config_format=json")
        except RequestFailure as error:
            if error.kind is Failure.REFUSED:
                return None
            raise

    async def answers_strangers(self) -> bool:
        """Returns whether control routes answer a request that carries no token."""
        async with EngineClient(self.url, None, model=self._model, timeout=self._timeout) as stranger:
            try:
                await stranger.call("GET", "/is_paused")
            except RequestFailure as error:
                if error.kind is not Failure.REFUSED:
                    raise
                return False
            return True

    async def pause(self) -> None:
        """Pauses running requests between two tokens, without losing them."""
        await self.call("POST", "/pause?mode=keep")
        self.tracker.paused_at = time.monotonic()

    async def resume(self) -> None:
        """Resumes paused requests."""
        await self.call("POST", "/resume")

    async def reload_weights(self, path: Path) -> None:
        """Makes the engine load a Hugging Face folder that it can read, and drop its cached prefixes."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}
        await self.call("POST", "/collective_rpc", body)
        if renews_tied_head(await self.server_info()):
            await self.call("POST", "/collective_rpc", {"method": "renew_tied_head"})
        await self.forget_prefixes()

    async def forget_prefixes(self) -> None:
        """Makes the engine drop the cached prefixes of older weights.

        vLLM then computes the caches of paused requests again; the embedded engine keeps them. If the engine is paused,
        all tokens that the older weights generated have been read at return. Raises RequestFailure if the engine
        reports that it failed.
        """
        answer = await self.call("POST", "/reset_prefix_cache?reset_running_requests=true")
        if answer.get("success") is False:
            raise self._failure(Failure.SERVER, "/reset_prefix_cache failed: keys of older weights may be in use")
        await self.tracker.read_up(self.tracker.paused_at)

    async def update_weight_version(self, version: str) -> None:
        """Tells the engine the name of the weights that generate tokens from now on."""
        await self.call("POST", "/update_weight_version", {"new_version": version})
        self.version = parse_version(version, self.version)

    async def weight_version(self) -> str | None:
        """Returns the engine's name of its weights, None if it does not report one."""
        version = (await self.call("GET", "/weight_info")).get("weight_version")
        return version if isinstance(version, str) else None

    async def weight_checksum(self) -> str:
        """Returns the checksum (hex) of the engine's weights."""
        answer = await self.call("POST", "/weight_checker", {"action": "checksum"})
        checksum = answer.get("checksum")
        if not isinstance(checksum, str):
            raise self._failure(Failure.CONTRACT, "/weight_checker gave no checksum")
        return checksum

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Aborts requests. Unknown ids are ignored."""
        own = [f"cmpl-{name}-0" for name in request_ids]  # the form that vLLM gives a completion's id
        await self.call("POST", "/abort_requests", {"request_ids": [*request_ids, *own]})

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, request_id: str | None = None
    ) -> Any:
        headers = {"X-Request-Id": request_id} if request_id else {}
        return self.session.request(method, self.url + path, json=body, headers=headers)

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Sends a control request. Returns the JSON object of the answer, {} if the answer is something else."""
        text = await self._text(method, path, body)
        try:
            answer = decode_json(text)
        except ValueError:
            return {}
        return answer if isinstance(answer, dict) else {}

    async def _text(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> str:
        try:
            async with self._request(method, path, body) as response:
                await self._check(response)
                return (await self._body(response)).decode("utf-8", "replace")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._translate(error) from error

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 200:
            return
        said = quoted(await self._body(response), 500)
        advice = f"{response.method} {response.url.path} answered {response.status}: {said or response.reason}"
        if response.status in (401, 403):
            advice += " (is rollout.api_key_env the engine's token?)"
        busy = response.status >= 500 or response.status in (408, 429)
        raise self._failure(Failure.SERVER if busy else Failure.REFUSED, advice)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """Returns the whole body. Raises RequestFailure or ValueError for one that does not end."""
        scope = asyncio.timeout(self._timeout)
        try:
            async with scope:
                return await read_bounded(response, MAX_ANSWER_BYTES)
        except TimeoutError:
            if not scope.expired():
                raise
            advice = f"its answer to {response.url.path} did not end within {self._timeout:g} s"
            raise self._failure(Failure.TIMEOUT, advice) from None

    def _failure(self, kind: Failure, advice: str) -> RequestFailure:
        return RequestFailure(self.url, advice, kind)

    def _translate(self, error: Exception) -> RequestFailure:
        if isinstance(error, RequestFailure):
            return error
        if isinstance(error, asyncio.TimeoutError):
            return self._failure(Failure.TIMEOUT, f"silent for {self._timeout:g} s")
        if isinstance(error, (aiohttp.ClientError, OSError)):
            return self._failure(Failure.CONNECTION, no_connection(error))
        return self._failure(Failure.CONTRACT, f"answered {error}")


@lru_cache(maxsize=64)
def parse_version(text: object, otherwise: WeightVersion) -> WeightVersion:
    """Parses a version in `str(WeightVersion)` form. Returns `otherwise` for an engine's own naming."""
    try:
        return WeightVersion.parse(str(text))
    except ValueError:
        return otherwise
