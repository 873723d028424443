"""Conversations written as one text, as in Anthropic's HH: `Human: …`, a blank line, `Assistant: …`."""

from __future__ import annotations

import re

from megatron_lwz.data.turns import Turn

_START = re.compile(r"\s*Human:")
_TURN = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")
_OPEN_END = re.compile(r"\n\nAssistant:\s*\Z")


def is_transcript(text: str) -> bool:
    """Returns whether a text begins with a human's turn and holds an assistant's."""
    return _START.match(text) is not None and "\n\nAssistant:" in text


def parse_transcript(text: str) -> list[Turn]:
    """Splits a transcript into its turns."""
    _, *parts = _TURN.split(text)
    return [
        Turn("user" if name == "Human" else "assistant", said.strip())
        for name, said in zip(parts[0::2], parts[1::2], strict=True)
    ]


def parse_open_transcript(text: str) -> list[Turn] | None:
    """Splits a request that ends where the assistant's reply begins; None for any other text."""
    return parse_transcript(text)[:-1] if _START.match(text) and _OPEN_END.search(text) else None
