"""Finds the length that a request states in numbers: "at least 2,000 words", "不少于800字", "一千五百字左右".

It uses rules only, no model, and is cautious: if a count may mean something else (the length of a given text, of one of
several parts, a vocabulary), or if two counts disagree, it finds no range.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from megatron_lwz.data.text import length_patterns as patterns
from megatron_lwz.data.text.length_patterns import Bound
from megatron_lwz.data.text.numerals import adjacent_pair, parse_number, simplify

SMALLEST = 50
"""Smallest count that is taken as a length. Smaller ones are of titles, slogans and word lists rather than of texts."""
LARGEST = 1_000_000
TOLERANCE = 0.1
"""Width of a range: N means N ± 10 %, a single bound gets a range of 10 % on its free side (docs/recipe.md)."""

Kind = Literal["about", "at least", "at most", "between"]
Unit = Literal["words", "characters"]


@dataclass(frozen=True)
class LengthRequest:
    """The requested range, inclusive and not rounded. Characters are Chinese 字, or letters in an English request."""

    lower: int
    upper: int
    unit: Unit
    kind: Kind


@dataclass(frozen=True)
class _Count:
    """One number or pair of numbers in the text. `unit` is None for a comparison whose unit may follow later."""

    kind: Kind
    low: float
    high: float
    unit: Unit | None
    total: bool = False
    part: bool = False


def find_length_request(text: str) -> LengthRequest | None:
    """Returns the range that `text` asks for, or None when it states none or none that is certain."""
    text = _normalize(text)
    counts: list[_Count] = []
    following: tuple[int, _Count] | None = None
    for match in reversed(
        list(patterns.COUNT.finditer(text))
    ):  # "at least 800 and at most 1000 words": unit from the right
        count = _read(text, match)
        if count is None:
            continue
        if count.unit is None and following is not None and following[0] - match.end() <= 30:
            opposite = {count.kind, following[1].kind} == {"at least", "at most"}
            count = _Count(count.kind, count.low, count.high, following[1].unit if opposite else None)
        if count.unit is not None:
            counts.append(count)
        following = match.start(), count
    totals, parts = [count for count in counts if count.total], [count for count in counts if count.part]
    return _combine(totals or [count for count in counts if not count.part] or parts)


def _combine(counts: list[_Count]) -> LengthRequest | None:
    """Combines all counts into one range: a count, possibly stated twice, or a minimum and a maximum. Else None."""
    units = {count.unit for count in counts}
    distinct = list(dict.fromkeys((count.kind, count.low, count.high) for count in counts))
    if len(distinct) == 2:
        bounds: dict[Kind, float] = {kind: low for kind, low, _ in distinct}
        if set(bounds) == {"at least", "at most"} and bounds["at least"] <= bounds["at most"]:
            distinct = [("between", bounds["at least"], bounds["at most"])]
        elif distinct[0][1:] == distinct[1][1:] and "about" in bounds:  # "a 2000-word essay (at least 2000 words)"
            distinct = [entry for entry in distinct if entry[0] != "about"]
    if len(distinct) != 1 or len(units) != 1 or (unit := units.pop()) is None:
        return None
    kind, low, high = distinct[0]
    if kind in ("about", "at most"):
        low *= 1 - TOLERANCE
    if kind in ("about", "at least"):
        high *= 1 + TOLERANCE
    return LengthRequest(round(low), round(high), unit, kind)


def _read(text: str, match: re.Match[str]) -> _Count | None:
    """Reads one number (or pair) in its context. Returns None if it is not the length of the text to write."""
    values = _values(match, text)
    if values is None or not SMALLEST <= values[0] <= values[1] <= LARGEST:
        return None
    left = re.split(r"[.!?;。\n](?= ?[^ ])", text[max(0, match.start() - 70) : match.start()])[-1]
    right = text[match.end() : match.end() + 60]
    found = patterns.UNIT.match(right)
    between, right = (found["between"], right[found.end() :]) if found is not None else ("", right)
    unit = _unit(found, left, right)
    before, bound = _bound_before(left)
    if found is not None and patterns.NOT_A_LENGTH_AFTER.match(right):
        return None
    if bound is None and any(patterns.GIVEN_BEFORE.search(part) for part in (left, before)):
        return None
    if patterns.PER_PART_BEFORE.search(before) or patterns.PER_PART_AFTER.match(right):
        return None
    bound = bound or _bound_after(between.lstrip("- ")) or _bound_after(right)
    if unit is None and bound is None:
        return None
    kind: Kind = "between" if values[0] < values[1] else bound or "about"
    total = bool(patterns.TOTAL_BEFORE.search(before) or patterns.TOTAL_AFTER.match(right))
    part = bool(patterns.PART_BEFORE.search(left) or patterns.PART_AFTER.match(right))
    return _Count(kind, *values, unit, total, part)


def _unit(found: re.Match[str] | None, left: str, right: str) -> Unit | None:
    """Returns the unit after the number, or that of a label before it ("word count:")."""
    if found is not None:
        return "words" if found["unit"].startswith(("word", "英", "单", "词")) else "characters"
    label = patterns.LABEL.search(left)
    if label is None or not patterns.RESTS.fullmatch(label["rest"]) or patterns.OTHER_UNIT.match(right):
        return None
    return "characters" if "字" in label.group() else "words"


def _values(match: re.Match[str], text: str) -> tuple[float, float] | None:
    pair = adjacent_pair(match["first"])
    if pair is not None and match["second"] is None:
        return float(pair[0]), float(pair[1])
    first = parse_number(match["first"])
    second = parse_number(match["second"]) if match["second"] else first
    if first is None or second is None:
        return None
    if match["joint"] == "and" and "between" not in text[max(0, match.start() - 30) : match.start()]:
        return None
    if match["first"] == "千" and re.match(
        r"字文(?![章案本稿])", text[match.end() :]
    ):  # the Thousand Character Classic
        return None
    if patterns.VAGUE.search(text[: match.end("first")][-40:]):
        return None
    low, high = first[0], second[0]
    if low < 100 <= high and second[1] > 1 and low * second[1] <= high:  # "2-3k", "八到九千"
        low *= second[1]
    return (low, high) if low <= high else None


def _bound_before(left: str) -> tuple[str, Bound | None]:
    """Splits off the comparison at the end of `left`. Returns (text before it, the bound it states)."""
    for pattern, bound, opposite in patterns.BEFORE:
        found = pattern.search(left)
        if found is None:
            continue
        before = left[: found.start()]
        negated = patterns.NEGATION.search(before) if opposite is not None else None
        if negated is not None:
            return _stripped(before[: negated.start()]), opposite
        return _stripped(before), bound
    return _stripped(left), None


def _stripped(left: str) -> str:
    found = patterns.FILLER.search(left)
    return left[: found.start()] if found is not None else left


def _bound_after(right: str) -> Bound | None:
    if patterns.AT_LEAST_AFTER.match(right):
        return "at least"
    return "at most" if patterns.AT_MOST_AFTER.match(right) else None


_SAME = str.maketrans(
    {
        **dict.fromkeys("—–−‐‑‒", "-"),
        **dict.fromkeys("〜∼～", "~"),
        "’": "'",
        **dict(zip("數內於約個過應間單詞總達餘來", "数内于约个过应间单词总达余来", strict=True)),
    }
)


def _normalize(text: str) -> str:
    """Converts to lower case, half width and one kind of dash, and removes emphasis marks.

    Traditional characters that the patterns use become simplified ones.
    """
    text = simplify(unicodedata.normalize("NFKC", text).lower()).translate(_SAME)
    return re.sub(r"[ \t]+", " ", re.sub(r"[*_`]", "", text))
