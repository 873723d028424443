"""What an engine's stream consists of."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lwz.types import FinishReason, TokenDelta


@dataclass(frozen=True)
class StreamEnd:
    """Why the engine stopped; `stop` is the stop string, None at an EOS or the token limit."""

    reason: FinishReason
    stop: str | None = None


StreamEvent = TokenDelta | StreamEnd
