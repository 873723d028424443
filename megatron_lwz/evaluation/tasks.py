"""Reads prompt files, ours and those of the public benchmarks unchanged, into tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.data.prompts import PREPARE, parse_range, parse_text, refuse_lost, whole_number
from megatron_lwz.data.requests import with_context
from megatron_lwz.errors import DataError
from megatron_lwz.reading import Row, Unit, read_rows
from megatron_lwz.types import LengthRange

ID_KEYS = ("id", "index", "idx")
PROMPT_KEYS = ("prompt", "query", "question", "instruction")


@dataclass(frozen=True)
class Task:
    """A prompt to answer. `length` is the requested range in words + CJK characters; a single number N is [N, N].

    `row` is the whole row as it was read, `line` its number in the file, in `unit`s. `id` is its `id`, `index` or
    `idx`, else its position.
    """

    id: str
    prompt: str
    length: LengthRange | None
    row: Mapping[str, Any]
    line: int = 0
    unit: Unit = "line"


def read_tasks(path: Path | str) -> list[Task]:
    """Reads the prompts of a file: ours, WritingBench's, Arena-Write's or LongBench-Write's. Raises DataError."""
    tasks: list[Task] = []
    first: dict[str, Row] = {}
    for row in read_rows(path):
        try:
            task = _task(row, len(tasks))
        except ValueError as error:
            raise row.error(error) from error
        if task.id in first:
            raise row.error(f"id {task.id!r} was already used on {row.unit} {first[task.id].number}")
        first[task.id] = row
        tasks.append(task)
    if not tasks:
        raise DataError(path, "no prompts in this file: give a file with rows")
    return tasks


def row_id(row: Mapping[str, Any], position: int) -> str:
    """Returns the row's own id as text, or its position (from 0) without one. Raises ValueError for an invalid id."""
    for key in ID_KEYS:
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise ValueError(f"'{key}' must be a whole number or a text, got {value!r:.80}")
        return str(value)
    return str(position)


def prompt_of(row: Mapping[str, Any]) -> str | None:
    """Returns a row's prompt, None without one. Raises ValueError.

    Alpaca's `input` and the like belong to the prompt, unless it stands under `prompt`, as in our own files.
    """
    key = _prompt_key(row)
    if key is None or key == "prompt":
        return None if key is None else parse_text(row, key)
    return with_context(parse_text(row, key), row, {key})


def asked_length(row: Mapping[str, Any]) -> LengthRange | None:
    """Parses the row's `length`: {"lower", "upper"}, a number, or nothing. Raises ValueError."""
    value = row.get("length")
    if value == "" or whole_number(value) == 0:
        return None
    if value is None or isinstance(value, dict):
        return parse_range(value)
    if (number := whole_number(value)) is None:
        raise ValueError(f'\'length\' must be a whole number or {{"lower", "upper"}}, got {value!r:.80}')
    return parse_range({"lower": number, "upper": number})


def _task(row: Row, position: int) -> Task:
    value = row.plain
    key, prompt = _prompt_key(value), prompt_of(value)
    if key is None or prompt is None:
        keys = ", ".join(value) or "nothing"
        raise ValueError(f"no prompt: give one of {', '.join(PROMPT_KEYS)}; the row has {keys:.200}; {PREPARE}")
    refuse_lost(value, key, prompt)
    return Task(row_id(value, position), prompt, asked_length(value), value, row.number, row.unit)


def _prompt_key(row: Mapping[str, Any]) -> str | None:
    """Returns the key that holds a row's prompt. A Parquet file has null under keys without value."""
    return next((key for key in PROMPT_KEYS if row.get(key) is not None), None)
