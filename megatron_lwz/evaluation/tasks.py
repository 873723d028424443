"""Reads prompt files, ours and those of the public benchmarks unchanged, into tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError
from megatron_lwz.types import LengthRange

ID_KEYS = ("id", "index", "idx")
PROMPT_KEYS = ("prompt", "query", "question", "instruction")


@dataclass(frozen=True)
class Task:
    """A prompt to answer. `length` is the requested range in words + CJK characters; a single number N is [N, N].

    `row` is the whole row as it was read, `line` its line number (from 1). `id` is its `id`, `index` or `idx`, else its
    position.
    """

    id: str
    prompt: str
    length: LengthRange | None
    row: Mapping[str, Any]
    line: int = 0


def read_rows(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) of every JSONL row. Skips blank lines. Raises DataError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(path, f"not valid JSON ({error})", line=number) from error
        if not isinstance(row, dict):
            raise DataError(path, f"a row must be a JSON object, not {type(row).__name__}", line=number)
        yield number, row


def read_tasks(path: Path | str) -> list[Task]:
    """Reads the prompts of a file: ours, WritingBench's, Arena-Write's or LongBench-Write's. Raises DataError."""
    tasks: list[Task] = []
    lines: dict[str, int] = {}
    for number, row in read_rows(path):
        try:
            task = Task(row_id(row, len(tasks)), _prompt(row), asked_length(row), row, number)
        except ValueError as error:
            raise DataError(path, str(error), line=number) from error
        if task.id in lines:
            raise DataError(path, f"id {task.id!r} was already used on line {lines[task.id]}", line=number)
        lines[task.id] = number
        tasks.append(task)
    if not tasks:
        raise DataError(path, "no prompts in this file")
    return tasks


def row_id(row: Mapping[str, Any], position: int) -> str:
    """Returns the row's own id as text, or its position (from 0) without one. Raises ValueError for an invalid id."""
    for key in ID_KEYS:
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise ValueError(f"'{key}' must be a whole number or a text, got {value!r}")
        return str(value)
    return str(position)


def asked_length(row: Mapping[str, Any]) -> LengthRange | None:
    """Parses the row's `length`: {"lower", "upper"}, a number, or nothing. Raises ValueError."""
    value = row.get("length")
    if value is None or value == "" or value == 0:
        return None
    if isinstance(value, dict) and all(type(value.get(key)) is int for key in ("lower", "upper")):
        lower, upper = value["lower"], value["upper"]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        lower = upper = int(value)
    else:
        raise ValueError(f'\'length\' must be a number or {{"lower", "upper"}}, got {value!r}')
    if not 0 <= lower <= upper or upper == 0:
        raise ValueError(f"'length' must have 0 ≤ lower ≤ upper and upper > 0, got [{lower}, {upper}]")
    return LengthRange(lower, upper)


def _prompt(row: Mapping[str, Any]) -> str:
    for key in PROMPT_KEYS:
        if key in row:
            if not isinstance(row[key], str) or not row[key].strip():
                raise ValueError(f"'{key}' must be a text that is not empty, got {row[key]!r:.80}")
            return row[key]
    raise ValueError(f"no prompt: give one of {', '.join(PROMPT_KEYS)}; the row has {', '.join(row) or 'nothing'}")
