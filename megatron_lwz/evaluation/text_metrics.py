"""Text metrics that need no judge: pure functions of the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from megatron_lwz.data.templates import detect_language
from megatron_lwz.rewards.length import longbench_reward
from megatron_lwz.types import LengthRange

# As in data/text/near_duplicates: each CJK character is one unit, and so is any other run of word characters.
_UNIT = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
_CJK = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"\b[a-zA-Z]+\b")


def range_score(asked: LengthRange, written: int) -> float:
    """Returns S_l of LongBench-Write, 0 to 100, for the nearest length in the range. It is 100 inside the range.

    A range [N, N] is LongBench-Write's N. An empty text scores 0 (the public script divides by zero there).
    """
    return 100 * longbench_reward(written, asked)


def distinct(text: str, size: int) -> float | None:
    """Returns Distinct-n: the share of distinct n-grams of words and CJK characters, lower case. None if too short."""
    return distinct_units(_UNIT.findall(text.lower()), size)


def distinct_units(units: Sequence[str], size: int) -> float | None:
    """Returns Distinct-n of the words and CJK characters of a text, given in order. None if too few."""
    grams = [tuple(units[place : place + size]) for place in range(len(units) - size + 1)]
    return len(set(grams)) / len(grams) if grams else None


def language_share(text: str, language: Literal["english", "chinese"]) -> float | None:
    """Returns the share of words + CJK characters that are in `language`, None for a text with neither."""
    chinese, english = len(_CJK.findall(text)), len(_WORD.findall(text))
    if not chinese + english:
        return None
    return (chinese if language == "chinese" else english) / (chinese + english)


def expected_language(prompt: str, named: str | None) -> Literal["english", "chinese"] | None:
    """Returns the language to write in: the one the row names, else the prompt's. None for an unsupported name."""
    if named is None:
        return detect_language(prompt)
    name = named.lower()
    if name.startswith(("en", "英")):
        return "english"
    if name.startswith(("zh", "cn", "chinese", "中")):
        return "chinese"
    return None
