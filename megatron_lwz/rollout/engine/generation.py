"""One request from its first to its last token: text, stop conditions, and deltas of a useful size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_lwz.models.decoding_cache import CachedSequence
from megatron_lwz.rollout.engine.text import Detokenizer, StopFinder
from megatron_lwz.types import FinishReason

FLUSH_TOKENS = 16
FLUSH_SECONDS = 0.25


@dataclass(frozen=True)
class Delta:
    """The tokens that a request gained since the last delta. `version` generated all of them.

    The last delta has a `reason`. `stop` is the stop string or stop token id that ended the request, None at an EOS.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float]
    text: str
    version: str
    reason: FinishReason | None = None
    stop: str | int | None = None


@dataclass(frozen=True)
class EndRules:
    """When a request ends. `end_tokens` maps a token id to the reported stop (None for an EOS)."""

    max_tokens: int
    end_tokens: Mapping[int, str | int | None]
    stop_strings: Sequence[str] = ()
    keep_stop_string: bool = False


class Generation:
    """A request in the engine. The engine's thread adds its tokens and calls `deliver`.

    The tokens of a stop string, and the EOS, are part of the tokens but not of the text.
    """

    def __init__(
        self,
        request_id: str,
        sequence: CachedSequence,
        rules: EndRules,
        *,
        decode: Callable[[Sequence[int]], str],
        deliver: Callable[[Delta], None],
    ) -> None:
        self.id = request_id
        self.sequence = sequence
        self.deliver = deliver
        self._rules = rules
        self._detokenizer = Detokenizer(decode)
        self._stops = StopFinder(rules.stop_strings)
        self._count = 0
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._text: list[str] = []
        self._flushed_at = 0.0

    def take(self, token: int, logprob: float) -> tuple[FinishReason, str | int | None] | None:
        """Adds a token. Returns (reason, stop) if the request ends with it."""
        self._count += 1
        self._tokens.append(token)
        self._logprobs.append(logprob)
        if token in self._rules.end_tokens:
            return FinishReason.STOP, self._rules.end_tokens[token]
        safe, stop = self._stops.feed(self._detokenizer.feed(token))
        self._text.append(safe)
        if stop is not None:
            if self._rules.keep_stop_string:
                self._text.append(stop)
            return FinishReason.STOP, stop
        return (FinishReason.LENGTH, None) if self._count >= self._rules.max_tokens else None

    def due(self, now: float) -> bool:
        """Returns whether the held-back tokens are many enough or old enough; `now` is in seconds."""
        return len(self._tokens) >= FLUSH_TOKENS or (bool(self._tokens) and now - self._flushed_at >= FLUSH_SECONDS)

    def flush(self, version: str, now: float) -> None:
        """Delivers the held-back tokens, if there are any."""
        if self._tokens:
            self._deliver(Delta(self._tokens, self._logprobs, "".join(self._text), version), now)

    def finish(self, version: str, reason: FinishReason, stop: str | int | None = None) -> None:
        """Delivers the last delta, with the held-back text unless a stop string ended the request."""
        if not isinstance(stop, str) or reason is not FinishReason.STOP:
            safe, _ = self._stops.feed(self._detokenizer.finish())
            self._text.append(safe + self._stops.finish())
        self._deliver(Delta(self._tokens, self._logprobs, "".join(self._text), version, reason, stop), 0.0)

    def _deliver(self, delta: Delta, now: float) -> None:
        self.deliver(delta)
        self._tokens, self._logprobs, self._text, self._flushed_at = [], [], [], now
