"""Columns that hold what precedes a reply: a conversation, or a request with its context, history and system text.

Rows of fine-tuning, preference pairs and requests share them. A column with text that would be ignored is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from megatron_lwz.data.transcripts import parse_open_transcript
from megatron_lwz.data.turns import MEDIA, Turn, holds_foreign, is_empty, parse_said, parse_turns, words

TALKS = ("conversation", "conversations", "messages", "chat")
"""Columns that hold a message list."""
QUESTIONS = ("prompt", "query", "instruction", "question", "inputs")
"""Columns that hold a request: a text, or a message list."""
CONTEXTS = ("input", "context")
"""Columns that hold the material of a request, or the request itself where the row has no other."""
SYSTEMS = ("system", "system_prompt")
REQUEST_COLUMNS = (*TALKS, *QUESTIONS, *CONTEXTS, *SYSTEMS, "history")
_FOREIGN = ("tools", "functions", *MEDIA)


def lowered(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row with its column names in lower case. Raises ValueError when two of them become the same."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        name = str(key).lower()
        if name in found:
            raise ValueError(f"two columns are named {name!r}, but for upper and lower case: keep one")
        found[name] = value
    return found


def find_request(row: Mapping[str, Any]) -> tuple[list[Turn], set[str]]:
    """Returns (the turns of a row's conversation or request, the columns that were read).

    A request column may hold a text or turns. The turns are a system text, the history, the request. There are none if
    no known column holds any. Raises ValueError that names the column.
    """
    talk = next((key for key in TALKS if not is_empty(row.get(key))), None)
    used = {talk} if talk is not None else set()
    turns = parse_turns(row[talk], talk) if talk is not None else _request(row, used)
    history = row.get("history")
    if talk is None and "history" not in used and not is_empty(history):
        turns = _history(history) + turns
        used.add("history")
    return _with_system(turns, row, used), used


def find_lost(row: Mapping[str, Any], used: Iterable[str], said: Iterable[str], columns: Iterable[str]) -> str | None:
    """Returns the first of `columns` with a text that was not read and that no text in `said` holds, else None.

    Tools, images and the like are always such columns.
    """
    known, read = words("\n".join(said)), set(used)
    foreign = [key for key in _FOREIGN if holds_foreign(row.get(key))]
    unread = [key for key in columns if key not in read and not is_empty(row.get(key))]
    return next((key for key in (*foreign, *unread) if key in foreign or not _is_held(row[key], key, known)), None)


def lost_message(key: str) -> str:
    """Returns the error for a column that `find_lost` found."""
    if key in _FOREIGN:
        return f"the row has '{key}', which cannot be read: leave this row out, or remove the column if it says nothing"
    return f"the column '{key}' has a text that would be lost: put it into the conversation, or remove the column"


def with_context(question: str, row: Mapping[str, Any], used: set[str]) -> str:
    """Returns the question and its material, which stands in a column of its own (Alpaca's `input`)."""
    for key in CONTEXTS:
        value = row.get(key)
        if key in used or is_empty(value):
            continue
        if not isinstance(value, str):
            raise ValueError(f"'{key}' must be a text beside the request, got {value!r:.40}")
        used.add(key)
        if words(value) not in words(question):
            return f"{question}\n\n{value}"
    return question


def _request(row: Mapping[str, Any], used: set[str]) -> list[Turn]:
    names = (*QUESTIONS, *CONTEXTS, *(("history",) if isinstance(row.get("history"), str) else ()))
    name = next((key for key in names if not is_empty(row.get(key))), None)
    if name is None:
        return []
    used.add(name)
    if isinstance(row[name], str) and (turns := parse_open_transcript(row[name])):
        return turns
    turns = parse_said(row[name], name, "user")
    if isinstance(row[name], str) and len(turns) == 1 and name in QUESTIONS:
        return [Turn("user", with_context(turns[0].text, row, used))]
    return turns


def _history(value: Any) -> list[Turn]:
    """Returns earlier turns: pairs of a question and its reply (Alpaca), or a message list."""
    advice = "'history' must be a list of [question, reply]"
    if not isinstance(value, list):
        raise ValueError(f"{advice}, got {value!r:.40}")
    if not all(isinstance(pair, list) for pair in value):
        return parse_turns(value, "history")
    if not all(len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value):
        raise ValueError(f"{advice}, got {value!r:.60}")
    return [turn for asked, said in value for turn in (Turn("user", asked), Turn("assistant", said))]


def _with_system(turns: list[Turn], row: Mapping[str, Any], used: set[str]) -> list[Turn]:
    for key in SYSTEMS:
        value = row.get(key)
        if not turns or is_empty(value):
            continue
        if not isinstance(value, str):
            raise ValueError(f"'{key}' must be a text, got {value!r:.40}")
        used.add(key)
        given = [turn.text for turn in turns if turn.role == "system"]
        if given and words(value) not in words("\n".join(given)):
            raise ValueError(f"'{key}' and the conversation have different system texts: keep one")
        if not given:
            turns = [Turn("system", value), *turns]
    return turns


def _is_held(value: Any, key: str, known: str) -> bool:
    """Returns whether the known text holds every text of a column. Numbers are no texts."""
    if isinstance(value, (bool, int, float)):
        return True
    try:
        texts = [turn.text for turn in parse_said(value, key, "user")]
    except ValueError:
        return False
    return all(words(text) in known for text in texts)
