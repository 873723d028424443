"""Human choices between two replies, as prompt groups of two rollouts that reward components score as in training.

A reply without tags is taken as the answer. Which of the two stands first in the group depends on their texts alone, so
that no component can learn the vote from the order.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from megatron_lwz.data.preferences.choices import holds_vote
from megatron_lwz.data.preferences.formats import read_pair_rows
from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preferences.rendering import Reply, split_reply
from megatron_lwz.data.prompts import parse_range
from megatron_lwz.data.replies import LeftOut
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.data.text.length import count_units
from megatron_lwz.errors import DataError
from megatron_lwz.reading import Row
from megatron_lwz.types import FinishReason, Prompt, Rollout

CATEGORIES = (
    "category", "categories", "subcategory", "domain", "domain1", "domain2", "genre", "tag", "tags", "task", "task_type",
    "topic", "theme", "subset", "language", "kind", "category_tag",
)  # fmt: skip
"""Columns that say what a pair is about, in the usual data sets."""
LONGEST_CATEGORY = 80
"""Maximum number of characters of a category. A longer text is none."""
NO_REQUEST = "without a request"
TAGS_INSIDE = "with think or answer tags inside a reply"
TAGGED, UNTAGGED, UNLIKE = "texts with tags", "texts without tags", "pairs of which one reply alone has thinking"
_PROMPT_KEYS = ("id", "prompt", "length", "language", "template")


@dataclass(frozen=True)
class HumanPair:
    """Two replies to one prompt as rollouts, and which of them people preferred (`better`: 0 or 1).

    `lengths` counts the words + CJK characters of the two answers. `document` is equal for pairs that are not
    independent. `categories` maps a column to its values. `key` is a digest of everything that a component sees, equal for
    several people's votes on one pair.
    """

    id: str
    prompt: Prompt
    rollouts: tuple[Rollout, Rollout]
    better: int
    lengths: tuple[int, int]
    document: str
    categories: Mapping[str, tuple[str, ...]]
    key: str
    forms: tuple[str, ...]
    """The form of each text (TAGGED, UNTAGGED), and UNLIKE where it applies."""
    margin: float | None = None
    """By how much people preferred the better text, on the data set's scale."""


@dataclass(frozen=True)
class HumanPairs:
    """The pairs of some files, the rows left out by reason, and counts of the texts' forms."""

    pairs: list[HumanPair]
    left_out: LeftOut
    forms: Counter[str]


def read_human_pairs(files: Sequence[Path], *, columns: Sequence[str] = (), limit: int | None = None) -> HumanPairs:
    """Reads the pairs of files, in order. `columns` are columns of categories beside the usual ones.

    `limit` keeps that many pairs, drawn by their digest: a larger limit keeps these and more. Raises DataError naming
    file and row, also if no pair is left.
    """
    left_out, pairs = LeftOut(), list[HumanPair]()
    wanted = {name.lower() for name in (*CATEGORIES, *columns)}
    for row, found in _rows(files):
        if isinstance(found, str):
            left_out[found] += 1
            continue
        pair = _human_pair(row, found, wanted)
        if isinstance(pair, str):
            left_out[pair] += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise DataError(files[0], left_out.all_of(left_out.total()))
    for name in columns:
        if not any(name.lower() in pair.categories for pair in pairs):
            raise DataError(files[0], f"no pair has a text in the column {name!r}: name another one (--by)")
    pairs = _with_margins(pairs)
    if limit is not None and limit < len(pairs):
        drawn = sorted(range(len(pairs)), key=lambda place: (pairs[place].key, place))[:limit]
        pairs = [pairs[place] for place in sorted(drawn)]
    return HumanPairs(pairs, left_out, Counter(form for pair in pairs for form in pair.forms))


def _with_margins(pairs: list[HumanPair]) -> list[HumanPair]:
    """Returns the pairs with the category `margin`, split in the middle: narrow and clear. Equal margins are not split."""
    margins = sorted(pair.margin for pair in pairs if pair.margin is not None)
    if not margins or margins[0] == margins[-1]:
        return pairs
    middle = median(margins)
    if middle == margins[0]:  # more than half are equal: narrow
        middle = next(margin for margin in margins if margin > middle)
    named = {True: f"clear: {middle:g} and more", False: f"narrow: below {middle:g}"}
    return [
        pair
        if pair.margin is None
        else replace(pair, categories={**pair.categories, "margin": (named[pair.margin >= middle],)})
        for pair in pairs
    ]


def _rows(files: Sequence[Path]) -> Iterator[tuple[Row, PreferencePair | str]]:
    for file in files:
        yield from read_pair_rows(file)


def _human_pair(row: Row, pair: PreferencePair, wanted: set[str]) -> HumanPair | str:
    if not pair.prompt.strip():
        return NO_REQUEST
    replies = split_reply(pair.chosen), split_reply(pair.rejected)
    think = all(reply.thinking.strip() for reply in replies)
    prompt = _prompt(row, pair, think=think)
    texts = [_as_response(reply, think=think) for reply in replies]
    drawn = int(hashlib.sha256(json.dumps(sorted(texts)).encode()).hexdigest(), 16) & 1
    better = int((texts[0] > texts[1]) != bool(drawn))
    first, second = texts if better == 0 else texts[::-1]
    rollouts = (_rollout(pair.id, 0, first), _rollout(pair.id, 1, second))
    said = [reply.answer for reply in (replies if better == 0 else replies[::-1])]
    if any(parse_rollout(prompt, rollout).answer != text for rollout, text in zip(rollouts, said, strict=True)):
        return TAGS_INSIDE
    given = zip(replies, (pair.chosen, pair.rejected), strict=True)
    forms = tuple(UNTAGGED if reply.answer == text else TAGGED for reply, text in given)
    if any(reply.thinking.strip() for reply in replies) and not think:
        forms += (UNLIKE,)
    seen = [prompt.text, prompt.length and (prompt.length.lower, prompt.length.upper), prompt.language, prompt.extra]
    key = hashlib.sha256(json.dumps([*seen, first, second], sort_keys=True, default=str).encode()).hexdigest()
    lengths = count_units(said[0]), count_units(said[1])
    categories = _categories(row, pair, wanted)
    return HumanPair(pair.id, prompt, rollouts, better, lengths, pair.document, categories, key, forms, pair.margin)


def _prompt(row: Row, pair: PreferencePair, *, think: bool) -> Prompt:
    """Returns the prompt with what components may read of a row: the range of lengths, the language, other columns."""
    plain = {str(name).lower(): value for name, value in row.plain.items()}
    given, language = plain.get("length"), plain.get("language")
    try:
        length = parse_range(given) if isinstance(given, dict) and "lower" in given else None
    except ValueError as error:
        raise row.error(error) from error
    extra = {name: value for name, value in plain.items() if name not in _PROMPT_KEYS and not holds_vote(name)}
    known = language if isinstance(language, str) and language else None
    return Prompt(pair.id, pair.prompt, length, known, "think" if think else "direct", extra)


def _as_response(reply: Reply, *, think: bool) -> str:
    answer = f"<answer>{reply.answer}</answer>"
    return f"<think>{reply.thinking}</think> {answer}" if think else answer


def _rollout(pair: str, index: int, text: str) -> Rollout:
    return Rollout(f"{pair}/{index}", pair, index, (), (), (), (), FinishReason.STOP, text)


def _categories(row: Row, pair: PreferencePair, wanted: set[str]) -> dict[str, tuple[str, ...]]:
    found = {name: _texts(value) for key, value in row.value.items() if (name := str(key).lower()) in wanted}
    found.setdefault("language", (pair.language,))
    found["source"] = (pair.source,) if pair.source else ()
    return {name: values for name, values in found.items() if values}


def _texts(value: Any) -> tuple[str, ...]:
    """Returns the categories that a value names: a text, the texts of a list, the true keys of an object (Arena)."""
    if isinstance(value, str):
        return (value.strip(),) if 0 < len(value.strip()) <= LONGEST_CATEGORY else ()
    if isinstance(value, list):
        return tuple(dict.fromkeys(text for item in value if isinstance(item, str) for text in _texts(item)))
    if isinstance(value, Mapping):
        inner = ((name, item) for name, item in value.items() if item is True or isinstance(item, Mapping))
        return tuple(text for name, item in inner for text in ((str(name),) if item is True else _texts(item)))
    return ()
