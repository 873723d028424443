"""The events of an engine's stream."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lwz.types import FinishReason, TokenDelta


@dataclass(frozen=True)
class StreamEnd:
    """The end of a stream and its reason. `stop` is the stop string, None at an EOS or the token limit."""

    reason: FinishReason
    stop: str | None = None


StreamEvent = TokenDelta | StreamEnd
