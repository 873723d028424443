"""Parses the chunks of a /v1/completions stream, in vLLM's format, into token deltas and the stream's end."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import orjson

from megatron_lwz.errors import concealed
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.events import StreamEnd, StreamEvent
from megatron_lwz.types import FinishReason, TokenDelta, WeightVersion

LARGEST_VOCABULARY = 2**31
"""Token ids are stored as int32."""


class ChunkReader:
    """Parses one engine's stream. `named` converts a chunk's name of the weights (None: no name) into a version.

    Token ids must be below `vocabulary`, the size of the policy's.
    """

    def __init__(
        self, url: str, named: Callable[[object], WeightVersion], *, vocabulary: int = LARGEST_VOCABULARY
    ) -> None:
        self._url = url
        self._named = named
        self._vocabulary = vocabulary

    def read(self, chunks: Sequence[str]) -> Iterator[StreamEvent]:
        """Yields the events of one read.

        Adjacent deltas of the same weights are joined. Chunks after the end are ignored. If a chunk is wrong, raises
        RequestFailure after it has yielded the events before that chunk.
        """
        held: list[TokenDelta] = []
        for chunk in chunks:
            try:
                if chunk == "[DONE]":
                    raise self._failure("the stream is done but gave no finish_reason")
                delta, end = self._parse(chunk)
            except RequestFailure:
                yield from _joined(held)
                raise
            if delta is not None:
                if held and held[0].version != delta.version:
                    yield from _joined(held)
                    held = []
                held.append(delta)
            if end is not None:
                yield from _joined(held)
                yield end
                return
        yield from _joined(held)

    def _parse(self, text: str) -> tuple[TokenDelta | None, StreamEnd | None]:
        try:
            chunk = orjson.loads(
                text
            )  # it takes a quarter of the time that a client's loop holds the interpreter; json took half
        except ValueError:
            raise self._failure(f"streamed what is not JSON: {concealed(text)[:80]!r}") from None
        if isinstance(chunk, dict) and "error" in chunk:
            raise self._failure(f"failed while writing: {concealed(str(chunk['error']))[:300]}", Failure.SERVER)
        try:
            choice = chunk["choices"][0]
            tokens = choice.get("token_ids") or []
            logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
            reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
            end = StreamEnd(FinishReason(reason), stop if isinstance(stop, str) else None) if reason else None
            delta = self._delta(tokens, logprobs, chunk.get("weight_version", choice.get("weight_version")))
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise self._failure(
                f"streamed a chunk our contract does not know ({error!r}): {concealed(text)[:80]!r}"
            ) from error
        return delta, end

    def _delta(self, tokens: list[int], logprobs: list[float], version: object) -> TokenDelta | None:
        if len(tokens) != len(logprobs):
            counts = f"{len(tokens)} token ids with {len(logprobs)} log-probs"
            raise self._failure(f"streamed {counts}: do `logprobs` and `return_token_ids` work?")
        if not tokens:
            return None
        if set(map(type, tokens)) != {int} or min(tokens) < 0:
            raise ValueError("token ids must be whole numbers from 0 on")
        if max(tokens) >= self._vocabulary:
            raise ValueError(f"token id {max(tokens)} is beyond the policy's vocabulary of {self._vocabulary}")
        kept = array("f", logprobs)
        if not math.isfinite(sum(kept)) or max(kept) > 1e-3:  # any value that is not finite in fp32 shows in the sum
            raise ValueError("log-probs must be finite and not above 0")
        return TokenDelta(tuple(tokens), tuple(kept), self._named(version))

    def _failure(self, advice: str, kind: Failure = Failure.CONTRACT) -> RequestFailure:
        return RequestFailure(self._url, advice, kind)


def _joined(deltas: Sequence[TokenDelta]) -> Sequence[TokenDelta]:
    if len(deltas) < 2:
        return deltas
    tokens = tuple(chain.from_iterable(delta.tokens for delta in deltas))
    logprobs = tuple(chain.from_iterable(delta.logprobs for delta in deltas))
    return [TokenDelta(tokens, logprobs, deltas[0].version)]
