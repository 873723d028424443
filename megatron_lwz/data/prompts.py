"""Prompt files: rows `{"prompt", "id"?, "length"?: {"lower", "upper"}, "language"?, "template"?, …}`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_lwz.data.requests import SYSTEMS, find_lost
from megatron_lwz.data.turns import parse_said
from megatron_lwz.errors import DataError
from megatron_lwz.reading import Row, read_rows
from megatron_lwz.types import LengthRange, Prompt

_KNOWN = {"id", "prompt", "length", "language", "template"}
PREPARE = "lwz prompts makes prompt rows from other files"


def read_prompts(path: str | Path, *, maximum_length: int | None = None) -> list[Prompt]:
    """Reads every row. Unknown keys are kept in `Prompt.extra`. The id of a row without one is `file name:line`.

    `maximum_length` is the length reward's L_max. A row whose upper bound reaches it is refused: the slope of its
    over-length reward would divide by zero or change sign. Raises DataError naming the file and line.
    """
    prompts: list[Prompt] = []
    first: dict[str, Row] = {}
    for row in read_rows(path):
        try:
            prompt = parse_prompt(row.plain, identity=row.identity, maximum_length=maximum_length)
        except ValueError as error:
            raise row.error(error) from error
        if prompt.id in first:
            before = first[prompt.id]
            raise row.error(
                f"id {prompt.id!r} was already used on {before.unit} {before.number}; give every row its own"
            )
        first[prompt.id] = row
        prompts.append(prompt)
    if not prompts:
        raise DataError(path, "no prompts in this file: give a file with rows")
    return prompts


def parse_prompt(row: Mapping[str, Any], *, identity: str | None = None, maximum_length: int | None = None) -> Prompt:
    """Parses one decoded row. `identity` is the id of a row without one.

    Raises ValueError that names the wrong key and what it must be.
    """
    if "prompt" not in row:
        keys = ", ".join(row) or "nothing"
        raise ValueError(f'no "prompt": a row is {{"prompt", "id"?, "length"?}}, this one has {keys:.200}; {PREPARE}')
    text = parse_text(row, "prompt")
    refuse_lost(row, "prompt", text)
    given, language, template = row.get("id"), row.get("language"), row.get("template")
    if given is None:
        given = identity
    if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
        raise ValueError(f"'id' must be a non-empty string or an integer, got {given!r:.80}")
    if language is not None and not isinstance(language, str):
        raise ValueError(f"'language' must be a string, got {language!r:.80}")
    if template not in (None, "think", "direct"):
        raise ValueError(f'\'template\' must be "think" or "direct", got {template!r:.80}')
    length = parse_range(row.get("length"))
    if length is not None and maximum_length is not None and length.upper >= maximum_length:
        advice = "reward.length.maximum must be larger"
        raise ValueError(f"prompt {str(given)!r} asks for up to {length.upper}, L_max is {maximum_length}: {advice}")
    extra = {key: value for key, value in row.items() if key not in _KNOWN}
    return Prompt(str(given), text, length, language, template or "think", extra)


def parse_text(row: Mapping[str, Any], key: str) -> str:
    """Returns the request under `key`: a text, or a message list of one user turn. Raises ValueError."""
    turns = parse_said(row[key], key, "user")
    if [turn.role for turn in turns] != ["user"]:
        roles = ", ".join(turn.role for turn in turns) or "none"
        raise ValueError(f"'{key}' must be the text of one user turn, its turns are: {roles:.80}; {PREPARE}")
    if not turns[0].text.strip():
        raise ValueError(f"'{key}' must not be empty")
    return turns[0].text


def refuse_lost(row: Mapping[str, Any], key: str, text: str) -> None:
    """Raises ValueError for a system text, tools or images beside the request, which no template has a place for."""
    lost = find_lost(row, {key}, [text], SYSTEMS)
    if lost is not None:
        raise ValueError(f"'{lost}' would be lost, the templates have no place for it: put its text into '{key}'")


def parse_range(value: Any) -> LengthRange | None:
    """Parses `{"lower", "upper"}`, whole numbers, also written as 500.0. None stays None. Raises ValueError."""
    if value is None or value == {"lower": None, "upper": None}:  # a Parquet file fills rows without a range like this
        return None
    lower, upper = (whole_number(value.get(key)) if isinstance(value, dict) else None for key in ("lower", "upper"))
    if lower is None or upper is None:
        raise ValueError(f'\'length\' must be {{"lower": whole number, "upper": whole number}}, got {value!r:.80}')
    if not 0 <= lower <= upper or upper == 0:
        raise ValueError(f"'length' must have 0 ≤ lower ≤ upper and upper > 0, got [{lower}, {upper}]")
    return LengthRange(lower, upper)


def whole_number(value: Any) -> int | None:
    """Returns an integer, also one that JSON or Parquet holds as 500.0. None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


class PromptOrder:
    """The endless order of the prompts, epoch after epoch. Each epoch has its own order. Resuming needs no state."""

    def __init__(self, count: int, seed: int | str, shuffle: bool = True) -> None:
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
