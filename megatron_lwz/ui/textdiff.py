"""The difference of two long texts: paragraphs first, then words inside of paragraphs that resemble each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|\s+|.", re.DOTALL)
_RESEMBLES = 0.4
_MOST_PARAGRAPHS = 1500
_LONGEST = 3000

Part = tuple[Literal["same", "changed"], str]
"""A piece of a paragraph, and whether the other text has it too."""


@dataclass(frozen=True)
class Pair:
    """Two paragraphs that face each other; one is empty where the other text has nothing there."""

    left: Sequence[Part]
    right: Sequence[Part]


def compare(left: str, right: str) -> Iterator[Pair]:
    """Yields the paragraphs of both texts in order. Beyond 1500 paragraphs they are not aligned any more."""
    a, b = ([line for line in text.split("\n") if line.strip()] for text in (left, right))
    matcher = SequenceMatcher(None, a[:_MOST_PARAGRAPHS], b[:_MOST_PARAGRAPHS], autojunk=False)
    for kind, low, high, first, last in matcher.get_opcodes():
        if kind == "equal":
            yield from (Pair([("same", line)], [("same", line)]) for line in a[low:high])
            continue
        for place in range(max(high - low, last - first)):
            yield _pair(
                *(
                    lines[at + place] if at + place < end else ""
                    for lines, at, end in ((a, low, high), (b, first, last))
                )
            )
    for place in range(_MOST_PARAGRAPHS, max(len(a), len(b))):
        yield _pair(*(lines[place] if place < len(lines) else "" for lines in (a, b)))


def share_in_common(left: str, right: str) -> float:
    """Returns the share of characters in paragraphs that both texts have, of the longer text."""
    a, b = ([line for line in text.split("\n") if line.strip()] for text in (left, right))
    common = set(a) & set(b)
    size = max(sum(map(len, a)), sum(map(len, b)))
    return sum(map(len, common)) / size if size else 1.0


def _pair(left: str, right: str) -> Pair:
    words = _WORD.findall(left[:_LONGEST]), _WORD.findall(right[:_LONGEST])
    matcher = SequenceMatcher(None, *words, autojunk=False)
    if not left or not right or matcher.quick_ratio() < _RESEMBLES or matcher.ratio() < _RESEMBLES:
        return Pair([("changed", left)] if left else [], [("changed", right)] if right else [])
    sides: tuple[list[Part], list[Part]] = ([], [])
    for kind, low, high, first, last in matcher.get_opcodes():
        for side, text, start, end in ((sides[0], words[0], low, high), (sides[1], words[1], first, last)):
            if start < end:
                side.append(("same" if kind == "equal" else "changed", "".join(text[start:end])))
    for side, whole in zip(sides, (left, right), strict=True):
        if len(whole) > _LONGEST:
            side.append(("changed", whole[_LONGEST:]))
    return Pair(*sides)
