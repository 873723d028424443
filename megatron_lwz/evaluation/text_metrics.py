"""What can be said of a text without a judge: pure functions of the text."""

from __future__ import annotations

import re
from typing import Literal

from megatron_lwz.data.templates import detect_language
from megatron_lwz.rewards.length import longbench_reward
from megatron_lwz.types import LengthRange

# As in data/text/near_duplicates: a CJK character is a unit of its own, any other run of word characters is one.
_UNIT = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
_CJK = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"\b[a-zA-Z]+\b")


def range_score(asked: LengthRange, written: int) -> float:
    """S_l of LongBench-Write, 0 to 100, against the nearest length of the range: 100 inside it.

    A range [N, N] is LongBench-Write's N. An empty text scores 0 (the public script divides by zero there).
    """
    return 100 * longbench_reward(written, asked)


def distinct(text: str, size: int) -> float | None:
    """Distinct-n: different n-grams per n-gram, in units of words and CJK characters, lower case. None if too short."""
    units = _UNIT.findall(text.lower())
    grams = [tuple(units[place : place + size]) for place in range(len(units) - size + 1)]
    return len(set(grams)) / len(grams) if grams else None


def language_share(text: str, language: Literal["english", "chinese"]) -> float | None:
    """The share of words + CJK characters that are of `language`; None for a text with neither."""
    chinese, english = len(_CJK.findall(text)), len(_WORD.findall(text))
    if not chinese + english:
        return None
    return (chinese if language == "chinese" else english) / (chinese + english)


def expected_language(prompt: str, named: str | None) -> Literal["english", "chinese"] | None:
    """The language to write in: what the row names, else the prompt's; None for a named one we cannot tell."""
    if named is None:
        return detect_language(prompt)
    name = named.lower()
    if name.startswith(("en", "英")):
        return "english"
    if name.startswith(("zh", "cn", "chinese", "中")):
        return "chinese"
    return None
