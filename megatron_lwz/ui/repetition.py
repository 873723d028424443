"""Passages of a text that stand in it word for word a second time."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lwz.data.text.near_duplicates import UNIT

SHORTEST = 8
"""Words of the shortest passage; CJK characters count as half a word."""


@dataclass(frozen=True)
class Twin:
    """text[start:end] repeats text[first:first_end], but for case and punctuation."""

    start: int
    end: int
    first: int
    first_end: int


def repeated(text: str) -> list[Twin]:
    """Returns the longest repeated passages from left to right, each with its earliest copy. Takes linear time."""
    units = [(match.start(), match.end(), match[0].lower()) for match in UNIT.finditer(text)]
    words = [word for _, _, word in units]
    seen: dict[tuple[str, ...], int] = {}
    found: list[Twin] = []
    place = 0
    while place + SHORTEST <= len(words):
        gram = tuple(words[place : place + SHORTEST])
        earlier = seen.setdefault(gram, place)
        size = 0
        if earlier < place:
            size = SHORTEST
            while place + size < len(words) and words[earlier + size] == words[place + size] and earlier + size < place:
                size += 1
            if _weight(words[place : place + size]) < SHORTEST:
                size = 0
        if size:
            copy = units[earlier][0], units[earlier + size - 1][1]
            found.append(Twin(units[place][0], units[place + size - 1][1], *copy))
            for inside in range(place + 1, place + size):
                seen.setdefault(tuple(words[inside : inside + SHORTEST]), inside)
        place += max(1, size)
    return found


def repeated_share(text: str, size: int = 4) -> float | None:
    """Returns the share of n-grams of words and CJK characters that occurred before; None for a text without one."""
    units = [match[0] for match in UNIT.finditer(text.lower())]
    grams = [hash(tuple(units[place : place + size])) for place in range(len(units) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def _weight(words: list[str]) -> float:
    return sum(0.5 if "\u3400" <= word <= "\u9fff" else 1.0 for word in words)
