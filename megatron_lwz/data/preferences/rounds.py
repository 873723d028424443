"""Votes on conversations whose rounds stand as lists of texts, one column per speaker (Arena's 55k votes)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_lwz.decoding import OTHER_SHAPE, decode_json

_COLUMNS = ("prompt", "response_a", "response_b")
_TALKS = ("conversation_a", "conversation_b")


def join_rounds(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row with `conversation_a` and `conversation_b` in place of lists of equally many requests and replies.

    The lists may be JSON in a text. A null counts as an empty text. Any other row is returned as it is.
    """
    found = [_texts(row.get(name)) for name in _COLUMNS]
    asked, *sides = found
    if not asked or any(side is None or len(side) != len(asked) for side in sides):
        return dict(row)
    rest = {name: value for name, value in row.items() if name not in _COLUMNS}
    for name, said in zip(_TALKS, sides, strict=True):
        rounds = zip(asked, said or (), strict=True)
        rest[name] = [
            {"role": role, "content": text}
            for both in rounds
            for role, text in zip(("user", "assistant"), both, strict=True)
        ]
    return rest


def _texts(value: Any) -> list[str] | None:
    """Returns the texts of a list, also of one in JSON; None for anything else."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return None
        try:
            value = decode_json(value)
        except OTHER_SHAPE:
            return None
    if not isinstance(value, list) or not all(item is None or isinstance(item, str) for item in value):
        return None
    return [item or "" for item in value]
