"""Finds in a row of preference data the better reply, the worse one, and by how much the first is better.

Knows two replies of which the columns' names say which is better, two replies with a column that says so, and lists of
replies with scores or ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lwz.data.requests import TALKS
from megatron_lwz.data.turns import is_empty

TIED = "tied"
ONE_REPLY = "with fewer than two scored replies"

_CHOICES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("preferred_output", "non_preferred_output"),
    ("better", "worse"),
    ("winner_response", "loser_response"),
    ("chosen_story", "rejected_story"),  # LitBench
    ("chosen_story_text", "rejected_story_text"),
    ("response_j", "response_k"),
    ("response", "rejected_response"),
    *((talk, rejected) for talk in TALKS for rejected in ("rejected_response", "rejected_messages")),
)
_TWO = (
    ("response_a", "response_b"),
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("answer_a", "answer_b"),
    ("answer_0", "answer_1"),
    ("output_1", "output_2"),
    ("completion_a", "completion_b"),
    ("human_ref_a", "human_ref_b"),
    ("conversation_a", "conversation_b"),
)
_WINNERS = ("winner", "better_response_id", "preference", "label", "labels", "choice")
_STRENGTHS = ("overall_preference", "preference_strength")
"""Columns with a number below 0 where the first reply is better, above 0 where the second is (HelpSteer)."""
FLAGS = ("winner_model_a", "winner_model_b", "winner_tie")
"""Columns of which one is true: the first reply is better, the second is, neither (Arena's 55k votes)."""
_VOTES = (
    "chosen", "rejected", "winner", "loser", "prefer", "score", "rating", "rank", "margin", "vote", "upvote", "downvote",
)  # fmt: skip
"""How words begin in the names of columns that tell the vote, such as HelpSteer's `individual_preference`."""
_LISTS = ("completions", "answers", "responses")
_LIST_TEXTS = ("response", "text", "answer", "content", "completion")
_TURN_KEYS = ("role", "from", "messages", "human", "user", "input", "question")
"""Keys of an object that is a turn, a conversation or an exchange."""
_SCORES = ("overall_score", "score", "rating", "fine-grained_score", "pm_score")
_TIES = ("both", "neither", "equal", "both_bad", "bothbad", "none")
_LARGEST = float.fromhex("0x1.fffffep+127")
"""Largest number in fp32."""


@dataclass(frozen=True)
class Choice:
    """The better and the worse reply as the row holds them, their columns, and the lead of the better one."""

    better: Any
    worse: Any
    names: tuple[str, str]
    margin: float | None = None


class UnknownFormatError(ValueError):
    """A row in none of the known formats."""


def find_choice(row: Mapping[str, Any]) -> Choice | str:
    """Returns the choice of a row whose columns are in lower case, or the reason why it prefers no reply.

    Raises ValueError that names the column; UnknownFormatError when no known columns are there.
    """
    for better, worse in _CHOICES:
        if row.get(better) is not None and row.get(worse) is not None:
            lead = _lead(row, better, worse)
            (first, rated), (second, other) = (_unpacked(row[name], name) for name in (better, worse))
            if lead is None and rated is not None and other is not None:
                lead = max(0.0, rated - other)
            return Choice(first, second, (better, worse), lead)
    for name in _LISTS:
        if isinstance(row.get(name), list) and any(isinstance(item, Mapping) for item in row[name]):
            return _best_and_worst(row[name], name)
    for names in _TWO:
        if all(row.get(name) is not None for name in names):
            return _of_two(row, names)
    half = next((names for names in (*_CHOICES, *_TWO) if all(name in row for name in names)), None)
    if half is not None:
        missing = next(name for name in half if row[name] is None)
        raise ValueError(f"'{missing}' is null: a pair needs two replies, leave this row out")
    known = ", ".join(f"{better} + {worse}" for better, worse in (*_CHOICES[:1], *_TWO[:2]))
    raise UnknownFormatError(f"no known columns of a pair ({known} + winner, completions …)")


def holds_vote(name: str) -> bool:
    """Returns whether a column holds a reply of a pair, or says which one people preferred."""
    name = name.lower()
    known = {*_WINNERS, *_STRENGTHS, *_LISTS, *FLAGS, *(column for names in (*_CHOICES, *_TWO) for column in names)}
    return name in known or any(word.startswith(_VOTES) for word in re.split(r"[^a-z]+", name))


def finite(value: Any, name: str) -> float | None:
    """Returns a number or a text that holds one; None for null and for other texts.

    Raises ValueError when the number is NaN, infinite or too large for fp32.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    except OverflowError:
        number = math.inf
    if not abs(number) <= _LARGEST:
        raise ValueError(f"'{name}' must be a finite number in fp32, got {value!r:.40}")
    return number


def _unpacked(value: Any, name: str) -> tuple[Any, float | None]:
    """Returns the text and the score of a reply that is an object of both (WritingPreferenceBench); others unchanged."""
    if not isinstance(value, Mapping) or any(key in value for key in _TURN_KEYS):
        return value, None
    text = next((value[key] for key in _LIST_TEXTS if isinstance(value.get(key), str)), None)
    if text is None:
        return value, None
    scores = (finite(value.get(key), f"{name}.{key}") for key in _SCORES)
    return text, next((score for score in scores if score is not None), None)


def _lead(row: Mapping[str, Any], better: str, worse: str) -> float | None:
    """Returns the pair's own margin, else the difference of the two replies' scores if that is above 0, else 0."""
    if not is_empty(row.get("margin")) or isinstance(row.get("margin"), float):  # is_empty includes NaN
        given = finite(row["margin"], "margin")
        if given is None:
            raise ValueError(f"'margin' must be a number, got {row['margin']!r:.40}")
        return given
    for pattern in ("score_{}", "{}_score", "{}_rating", "{}-rating", "rating_{}"):
        names = [pattern.format(name) for name in (better, worse)]
        scores = [finite(row.get(name), name) for name in names]
        if scores[0] is not None and scores[1] is not None:
            lead = finite(scores[0] - scores[1], f"{names[0]} − {names[1]}")
            return max(0.0, lead) if lead is not None else None
    return None


def _of_two(row: Mapping[str, Any], names: tuple[str, str]) -> Choice | str:
    place, margin = _winner(row, names)
    if place is None:
        return TIED
    better, worse = names if place == 0 else names[::-1]
    return Choice(row[better], row[worse], (better, worse), margin)


def _winner(row: Mapping[str, Any], names: tuple[str, str]) -> tuple[int | None, float | None]:
    """Returns (index of the better reply or None for a tie, margin).

    Raises ValueError for a value that says neither, and for two columns that contradict each other.
    """
    said = ["winner_model_a"] if row.get("winner_model_a") is not None else []
    said += [key for key in _WINNERS if not is_empty(row.get(key))]
    said += [key for key in _STRENGTHS if row.get(key) is not None]
    if said:
        place, margin = _verdict(row, said[0], names)
        for key in said[1:]:
            try:
                other, _ = _verdict(row, key, names)
            except ValueError:
                continue  # the column says something else, such as a class
            if other != place:
                raise ValueError(f"'{said[0]}' and '{key}' contradict each other: keep one")
        return place, margin
    keys = [f"score_{name.rpartition('_')[2]}" for name in names]
    first, second = (finite(row.get(key), key) for key in keys)
    if first is not None and second is not None:
        return None if first == second else int(second > first), finite(abs(first - second), " − ".join(keys))
    raise UnknownFormatError(f"two replies, but no column says which is better ({', '.join((*_WINNERS, *_STRENGTHS))})")


def _verdict(row: Mapping[str, Any], key: str, names: tuple[str, str]) -> tuple[int | None, float | None]:
    """Returns what one column says: (index of the better reply or None for a tie, margin)."""
    if key == "winner_model_a":
        return _flagged(row), None
    if key in _WINNERS:
        return _named(row[key], key, names), None
    strength = finite(row[key], key)
    if strength is None:
        raise ValueError(f"'{key}' must be a number, got {row[key]!r:.40}")
    return None if strength == 0 else int(strength > 0), abs(strength)


def _flagged(row: Mapping[str, Any]) -> int | None:
    """Returns the index of the better reply, or None for a tie. Raises ValueError unless exactly one flag is true."""
    flags = [finite(row.get(key), key) if not isinstance(row.get(key), bool) else float(row[key]) for key in FLAGS]
    if sorted(flag or 0.0 for flag in flags) != [0.0, 0.0, 1.0]:
        raise ValueError(f"exactly one of {', '.join(FLAGS)} must be 1")
    return (0, 1, None)[flags.index(1.0)]


def _named(value: Any, key: str, names: tuple[str, str]) -> int | None:
    """Returns the index that the value of a winner's column names, or None for a tie."""
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    if "tie" in text or text in _TIES:
        return None
    places = {"a": 0, "model_a": 0, "b": 1, "model_b": 1, names[0]: 0, names[1]: 1}
    if key == "labels" and names[0] == "human_ref_a":
        places |= {"1": 0, "0": 1}  # SHP: whether A is better
    elif key != "better_response_id" and names[0].endswith("1"):
        places |= {"1": 0, "2": 1}
    else:
        places |= {"0": 0, "1": 1}
    if text not in places:
        raise ValueError(f"'{key}' = {value!r:.40} names neither reply")
    return places[text]


def _best_and_worst(items: Sequence[Any], name: str) -> Choice | str:
    """Returns the best and the worst of a list of replies, by score or by rank (1 is the best)."""
    replies = []
    for number, item in enumerate(items, start=1):
        if not isinstance(item, Mapping):
            raise ValueError(f"'{name}' must be a list of objects with a response and a score")
        text = next((item[key] for key in _LIST_TEXTS if isinstance(item.get(key), str)), None)
        scores = {key: finite(item.get(key), f"{name}[{number - 1}].{key}") for key in (*_SCORES, "rank")}
        if text is not None:
            replies.append((text, {key: score for key, score in scores.items() if score is not None}))
    counts = {key: sum(key in scores for _, scores in replies) for key in (*_SCORES, "rank")}
    by = max(counts, key=lambda key: counts[key])
    if counts[by] == 0:
        raise ValueError(f"no object in '{name}' has a response and one of {', '.join((*_SCORES, 'rank'))}")
    if counts[by] == 1:
        return ONE_REPLY
    sign = -1 if by == "rank" else 1
    rated = [(sign * scores[by], text) for text, scores in replies if by in scores]
    worst, best = min(rated, key=lambda item: item[0]), max(rated, key=lambda item: item[0])
    if best[0] == worst[0]:
        return TIED
    margin = None if by == "rank" else finite(best[0] - worst[0], f"{name}: best − worst {by}")
    return Choice(best[1], worst[1], (name, name), margin)
