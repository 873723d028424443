"""Prompt files: one JSON object per line, `{"id", "prompt", "length": {"lower", "upper"}, "language"?, "template"?, …}`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError
from megatron_lwz.types import LengthRange, Prompt

_KNOWN = {"id", "prompt", "length", "language", "template"}


def read_prompts(path: str | Path, *, maximum_length: int | None = None) -> list[Prompt]:
    """Reads every row. Unknown keys are kept in `Prompt.extra`; blank lines are skipped.

    `maximum_length` is the length reward's L_max. A row whose upper bound reaches it is refused: the slope of its
    over-length reward would divide by zero or change sign. Raises DataError naming the file and line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"prompt file cannot be read ({error})") from error
    prompts: list[Prompt] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = parse_prompt(json.loads(line), maximum_length=maximum_length)
        except ValueError as error:
            raise DataError(path, _reason(error), line=number) from error
        if prompt.id in first_line:
            advice = f"id {prompt.id!r} was already used on line {first_line[prompt.id]}; give every row its own"
            raise DataError(path, advice, line=number)
        first_line[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise DataError(path, "no prompts in this file")
    return prompts


def parse_prompt(row: Any, *, maximum_length: int | None = None) -> Prompt:
    """Parses one decoded row. Raises ValueError that names the wrong key and what it must be."""
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, not {type(row).__name__}")
    identity, text = row.get("id"), row.get("prompt")
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    if not isinstance(identity, str) or not identity:
        raise ValueError(f"'id' must be a non-empty string or an integer, got {identity!r}")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"'prompt' must be a non-empty string, got {text!r}")
    language, template = row.get("language"), row.get("template")
    if language is not None and not isinstance(language, str):
        raise ValueError(f"'language' must be a string, got {language!r}")
    if template not in (None, "think", "direct"):
        raise ValueError(f'\'template\' must be "think" or "direct", got {template!r}')
    length = _parse_range(row.get("length"))
    if length is not None and maximum_length is not None and length.upper >= maximum_length:
        advice = "reward.length.maximum must be larger"
        raise ValueError(f"prompt {identity!r} asks for up to {length.upper}, L_max is {maximum_length}: {advice}")
    extra = {key: value for key, value in row.items() if key not in _KNOWN}
    return Prompt(identity, text, length, language, template or "think", extra)


def _parse_range(value: Any) -> LengthRange | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(type(value.get(key)) is int for key in ("lower", "upper")):
        raise ValueError(f'\'length\' must be {{"lower": integer, "upper": integer}}, got {value!r}')
    lower, upper = value["lower"], value["upper"]
    if not 0 <= lower <= upper or upper == 0:
        raise ValueError(f"'length' must have 0 ≤ lower ≤ upper and upper > 0, got [{lower}, {upper}]")
    return LengthRange(lower, upper)


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg}, column {error.colno})"
    return str(error)


class PromptOrder:
    """The endless order of the prompts, epoch after epoch. Each epoch has its own order. Resuming needs no state."""

    def __init__(self, count: int, seed: int, shuffle: bool = True) -> None:
        """Takes the number of prompts. The order depends only on `seed` and the epoch."""
        self._count = count
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = -1
        self._order = list(range(count))

    def index(self, k: int) -> int:
        """Returns the index into the prompt list of the k-th prompt drawn, k from 0."""
        epoch, position = divmod(k, self._count)
        if self._shuffle and epoch != self._epoch:
            self._order = list(range(self._count))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._order[position]

    __getitem__ = index
