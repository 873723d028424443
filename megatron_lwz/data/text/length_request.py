"""Finds the length that a request states in numbers: "at least 2,000 words", "不少于800字", "一千五百字左右".

It uses rules only, no model, and is cautious: if a count may mean something else (the length of a given text, of one of
several parts, a vocabulary), or if two counts disagree, it finds no range.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from megatron_lwz.data.text import length_words
from megatron_lwz.data.text.length import Unit
from megatron_lwz.data.text.length_scope import Scope, find_asked_parts, find_scopes
from megatron_lwz.data.text.length_statements import read_statement
from megatron_lwz.data.text.length_tokens import Count, find_statements, normalize

__all__ = ["TOLERANCE", "LengthReading", "LengthRequest", "Unit", "find_length_request", "read_length"]

TOLERANCE = 0.1
"""Width of a range: N means N ± 10 %, a single bound gets a range of 10 % on its free side (docs/recipe.md)."""
_FAR_BOUNDS = 3.0
"""Largest ratio of a maximum to a minimum in another sentence: beyond it, they are hardly of the same text."""
_FAR_TARGET = 1.3
"""Largest ratio between a target ("2000 words") and a minimum or maximum in another sentence."""

Kind = Literal["about", "at least", "at most", "between"]


@dataclass(frozen=True)
class LengthRequest:
    """The requested range, inclusive and not rounded. Characters are Chinese 字, or letters in an English request.

    `kind` names the bounds that the request states. The other ones are TOLERANCE away.
    """

    lower: int
    upper: int
    unit: Unit
    kind: Kind


@dataclass(frozen=True)
class LengthReading:
    """What a request says about its length. `unclear`: it states lengths that disagree or that were not understood."""

    request: LengthRequest | None
    unclear: bool = False


@dataclass(frozen=True)
class _Stated:
    """What one or more counts state about the whole text: a minimum, a maximum, a target."""

    unit: Unit
    lower: float | None = None
    upper: float | None = None
    target: float | None = None

    @property
    def largest(self) -> float:
        """The largest of the numbers."""
        return max(value for value in (self.lower, self.upper, self.target) if value is not None)

    def within(self, other: _Stated) -> bool:
        """Returns whether this is a range inside the bounds of the other."""
        return (
            self.lower is not None
            and self.upper is not None
            and (other.lower is None or other.lower <= self.lower)
            and (other.upper is None or self.upper <= other.upper)
        )


def find_length_request(text: str) -> LengthRequest | None:
    """Returns the range that `text` asks for, or None when it states none or none that is certain."""
    return read_length(text).request


def read_length(text: str) -> LengthReading:
    """Returns the range that `text` asks for, and whether it states lengths that give no certain range."""
    text = normalize(text)
    if length_words.UNIT.search(text) is None:
        return LengthReading(None)
    asked = find_asked_parts(text)
    found: dict[Scope, list[_Stated | None]] = {"total": [], "whole": [], "part": []}
    loose: list[Count] = []
    for statement in find_statements(text):
        read_statement(statement)
        scopes = find_scopes(statement, asked)
        loose += statement.loose
        for scope, statements in found.items():
            counts = [count for count, other in zip(statement.counts, scopes, strict=True) if other == scope]
            if counts:
                statements.append(None if statement.doubtful else _merge(_stated(count) for count in counts))
    stated = _choose(found["total"], found["whole"], found["part"])
    request = _range(stated, loose) if stated is not None else None
    return LengthReading(request, unclear=request is None and any(found.values()))


def _choose(totals: list[_Stated | None], wholes: list[_Stated | None], parts: list[_Stated | None]) -> _Stated | None:
    """Returns what the request states about the text to write. Without a word about it, a part that it asks for."""
    if not totals and not wholes:
        return _merge_statements(parts)
    stated = _merge_statements(totals + wholes)
    total = _merge_statements(totals) if stated is None and totals else None
    if total is None:
        return stated
    # "3000 words in total. Start with 500 words on …": smaller numbers than the total may be of parts.
    return total if all(one is not None and one.largest <= total.largest for one in wholes) else None


def _stated(count: Count) -> _Stated:
    if count.unit is None:
        raise AssertionError("a count of a length has a unit")
    if count.pair:
        return _Stated(count.unit, lower=count.low, upper=count.high)
    if not count.bound:
        return _Stated(count.unit, target=count.low)
    return _Stated(count.unit, count.low if count.lower else None, count.high if count.upper else None)


def _merge(statements: Iterable[_Stated | None]) -> _Stated | None:
    """Returns what all of them state together. None: there is none, or they disagree."""
    merged: _Stated | None = None
    for stated in statements:
        merged = stated if merged is None else _both(merged, stated)
        if merged is None:
            return None
    return merged


def _both(one: _Stated, other: _Stated | None) -> _Stated | None:
    if other is None or one.unit != other.unit:
        return None
    if one.target is not None and other.target is not None and one.target != other.target:
        return None
    target = one.target if one.target is not None else other.target
    if one.within(other):
        lower, upper = one.lower, one.upper
    elif other.within(one):
        lower, upper = other.lower, other.upper
    elif (one.lower is None or other.lower in (None, one.lower)) and (
        one.upper is None or other.upper in (None, one.upper)
    ):
        lower = one.lower if one.lower is not None else other.lower
        upper = one.upper if one.upper is not None else other.upper
    else:
        return None
    inside = sorted(value for value in (lower, target, upper) if value is not None)
    ordered = [value for value in (lower, target, upper) if value is not None] == inside
    return _Stated(one.unit, lower, upper, target) if ordered else None


def _merge_statements(statements: list[_Stated | None]) -> _Stated | None:
    """Merges what different sentences state. Numbers far apart are of different things, so they disagree."""
    merged = _merge(statements)
    if merged is None or len(set(statements)) == 1:
        return merged
    if any(one is not None and one.within(merged) for one in statements):
        return merged
    lower, upper, target = merged.lower, merged.upper, merged.target
    if target is not None:
        near = all(1 / _FAR_TARGET <= value / target <= _FAR_TARGET for value in (lower, upper) if value is not None)
    else:
        near = lower is None or upper is None or upper <= _FAR_BOUNDS * lower
    return merged if near else None


def _range(stated: _Stated, loose: list[Count]) -> LengthRequest | None:
    lower, upper, target = stated.lower, stated.upper, stated.target
    if lower is not None and lower == upper:
        lower, upper, target = None, None, lower
    if (lower is None or upper is None) and _may_bound(stated, loose):
        return None
    kind: Kind = "about"
    if lower is not None:
        kind = "at least" if upper is None else "between"
    elif upper is not None:
        kind = "at most"
    low = lower if lower is not None else (target or upper or 0) * (1 - TOLERANCE)
    high = upper if upper is not None else (target or lower or 0) * (1 + TOLERANCE)
    return LengthRequest(round(low), round(high), stated.unit, kind)


def _may_bound(stated: _Stated, loose: list[Count]) -> bool:
    """Returns whether a bound without a unit may be the one that is missing: "at least 800 words … at most 1000"."""
    value = stated.target or stated.lower or stated.upper or 0.0
    return any(value / _FAR_BOUNDS <= count.low <= _FAR_BOUNDS * value for count in loose)
