"""Reads preference pairs in the usual formats: rows of JSONL, JSON or Parquet → PreferencePair.

Which reply is better: `choices.py`. A reply is a text, a message list with or without the request in it, or a
transcript (Anthropic HH). The request stands beside the replies, inside them, or both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_lwz.data.preferences.choices import Choice, UnknownFormatError, find_choice
from megatron_lwz.data.preferences.pairs import PreferencePair, text_of
from megatron_lwz.data.preferences.rendering import says_more
from megatron_lwz.data.preferences.rounds import join_rounds
from megatron_lwz.data.replies import END_INSIDE, find_fault, holds_end, strip_ends
from megatron_lwz.data.requests import REQUEST_COLUMNS, find_lost, find_request, lost_message, lowered
from megatron_lwz.data.transcripts import is_transcript, parse_transcript
from megatron_lwz.data.turns import Turn, as_text, parse_said, words
from megatron_lwz.reading import Row, read_rows

EQUAL = "with equal replies"
OTHER_CONTEXT = "with different earlier replies"
TEXT_OUTSIDE = "with text outside the answer tags"
OTHER_REQUEST = "with transcripts of different requests"


def read_pairs(path: Path, *, any_rejected: bool = False) -> Iterator[PreferencePair | str]:
    """Yields the pairs of one file, in order, and the reason in place of each row that is left out.

    `any_rejected`: the rejected reply need not be a whole reply, since its form may be its fault.
    Raises DataError naming the file and row; for an unknown format it lists the columns present.
    """
    for _, pair in read_pair_rows(path, any_rejected=any_rejected):
        yield pair


def read_pair_rows(path: Path, *, any_rejected: bool = False) -> Iterator[tuple[Row, PreferencePair | str]]:
    """Yields what `read_pairs` does, each with its row. Raises DataError."""
    for row in read_rows(path):
        try:
            source = path.name.split(".")[0]
            yield row, parse_pair(row.value, row.identity, source=source, any_rejected=any_rejected)
        except UnknownFormatError as error:
            raise row.error(f"{error}; present are: {', '.join(map(str, row.value)) or 'none'}") from error
        except ValueError as error:
            raise row.error(error) from error


def parse_pair(
    row: Mapping[str, Any], identity: str, *, source: str = "", any_rejected: bool = False
) -> PreferencePair | str:
    """Parses one decoded row; returns the reason if it is left out. Raises ValueError that names the fault."""
    row = join_rounds(lowered(row))
    choice = find_choice(row)
    if isinstance(choice, str):
        return choice
    request, used = find_request(row)
    (before, chosen), (other, rejected) = (
        _side(value, name, alone=not request)
        for value, name in zip((choice.better, choice.worse), choice.names, strict=True)
    )
    if isinstance(choice.better, str) and is_transcript(choice.better) and not _same(before, other, assistant=False):
        return OTHER_REQUEST  # Anthropic's HH has such transcripts
    if request and request[-1].role == "assistant":
        if words(request[-1].text) != words(chosen):
            raise ValueError("the conversation must end with the user's request, or with the better reply")
        request = request[:-1]
    prompt = _context(request, before, other, choice)
    if isinstance(prompt, str):
        return prompt
    chosen, rejected = strip_ends(chosen), strip_ends(rejected)
    whole = (chosen,) if any_rejected and rejected.strip() else (chosen, rejected)
    fault = next(filter(None, map(find_fault, whole)), None) or (EQUAL if chosen.strip() == rejected.strip() else None)
    if fault is None and (holds_end(chosen) or holds_end(rejected)):
        fault = END_INSIDE
    if fault is None and any(map(says_more, whole)):
        fault = TEXT_OUTSIDE
    if fault is not None:
        return fault
    said = [*(turn.text for turn in prompt), chosen, rejected]
    lost = find_lost(row, used, said, REQUEST_COLUMNS)
    if lost is not None:
        raise ValueError(lost_message(lost))
    text = as_text(prompt) if prompt else ""
    return PreferencePair(
        id=str(row.get("id") or identity),
        prompt=text,
        chosen=chosen,
        rejected=rejected,
        kind=text_of(row, "kind", "human"),
        source=text_of(row, "source", source),
        document=text_of(row, "document", text or chosen),
        margin=choice.margin,
        template=row["template"] if row.get("template") in ("think", "direct") else None,
    )


def _side(value: Any, name: str, *, alone: bool) -> tuple[list[Turn], str]:
    """Returns (turns before the last reply, last reply). A transcript is split only if the row has no other request."""
    if isinstance(value, str) and alone and is_transcript(value):
        turns = parse_transcript(value)
        return (turns[:-1], turns[-1].text) if turns[-1].role == "assistant" else (turns, "")
    turns = parse_said(value, name, "assistant")
    if not turns or turns[-1].role != "assistant":
        raise ValueError(f"'{name}' must end with the assistant's reply")
    return turns[:-1], turns[-1].text


def _context(request: list[Turn], before: list[Turn], other: list[Turn], choice: Choice) -> list[Turn] | str:
    """Returns the turns that both replies follow, or the reason if their earlier turns differ."""
    better, worse = choice.names
    if not _same(before, other, assistant=False):
        raise ValueError(f"'{better}' and '{worse}' answer different requests: a pair needs one request")
    if not _same(before, other, assistant=True):
        return OTHER_CONTEXT
    inside = before or other
    beside, within = _joined(request), _joined(inside)
    if all(words(turn.text) in beside for turn in inside):
        return request
    if all(words(turn.text) in within for turn in request):
        return inside
    if inside[0].role == "assistant":
        return request + inside
    raise ValueError(f"the request beside '{better}' and the one inside it are different: keep one")


def _same(before: list[Turn], other: list[Turn], *, assistant: bool) -> bool:
    """Returns whether the turns before both replies are the same, or stand in one of them only."""
    said = [
        [(turn.role, words(turn.text)) for turn in turns if assistant or turn.role != "assistant"]
        for turns in (before, other)
    ]
    return not before or not other or said[0] == said[1]


def _joined(turns: list[Turn]) -> str:
    return words("\n".join(turn.text for turn in turns))
