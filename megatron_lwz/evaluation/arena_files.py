"""Reads Arena-Write's file and the players of a tournament."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.responses import cut, read_responses
from megatron_lwz.evaluation.tasks import Task

NAME_KEYS = ("model", "name", "source")
TEXT_KEYS = ("response", "output", "text", "content", "answer")
BASELINE_KEY = "baseline_response"


def read_baselines(tasks: Sequence[Task], path: Path) -> dict[str, dict[str, str]]:
    """Reads player → task id → text from the `baseline_response` of the rows.

    The data set card says that this key holds the outputs of six models, but shows an empty text. So four forms are
    accepted: a text (player `baseline`), a list, a {name: text}, and a list of {model, response}. Raises DataError for
    anything else.
    """
    found: dict[str, dict[str, str]] = {}
    for task in tasks:
        value = task.row.get(BASELINE_KEY)
        try:
            texts = _named(value)
        except ValueError as error:
            raise DataError(path, f"'{BASELINE_KEY}' {error}", line=task.line, unit=task.unit) from error
        for name, text in texts.items():
            if text.strip():
                found.setdefault(name, {})[task.id] = cut(text, None).answer
    return found


def read_player(path: Path, tasks: Sequence[Task]) -> dict[str, str]:
    """Reads task id → text from a response file.

    Raises DataError for a response to an unknown prompt, and for several responses to one prompt.
    """
    known = {task.id for task in tasks}
    found: dict[str, str] = {}
    for response in read_responses(path, tasks):
        if response.id not in known:
            raise DataError(path, f"response {response.id!r} answers no prompt of the file: are these its responses?")
        if response.sample:
            raise DataError(path, f"prompt {response.id!r} has several responses; a tournament takes one")
        found[response.id] = response.text
    return found


def _named(value: Any) -> Mapping[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"baseline": value}
    if isinstance(value, dict):
        return {str(name): _text(item) for name, item in value.items()}
    if isinstance(value, list):
        return {_name(item, place): _text(item) for place, item in enumerate(value, start=1)}
    raise ValueError(f"must be a text, a list or an object, got {type(value).__name__}")


def _name(item: Any, place: int) -> str:
    if isinstance(item, dict):
        for key in NAME_KEYS:
            if isinstance(item.get(key), str) and item[key]:
                return item[key]
    return f"baseline-{place}"


def _text(item: Any) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        for key in TEXT_KEYS:
            if isinstance(item.get(key), str):
                return item[key]
        raise ValueError(f"holds {', '.join(map(str, item)) or 'nothing'}, none of {', '.join(TEXT_KEYS)}")
    raise ValueError(f"must hold texts, got {type(item).__name__}")
