"""Phrasings with ranges written by hand, in data/length_requests.tsv."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.data.text import length_patterns as patterns
from megatron_lwz.data.text.length_request import SMALLEST, LengthRequest, find_length_request
from megatron_lwz.data.text.numerals import parse_number

TABLE = Path(__file__).parent / "data" / "length_requests.tsv"


def rows():
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            lower, upper, unit, request = line.split("\t")
            expected = None if lower == "-" else (int(lower), int(upper), unit)
            yield pytest.param(request.replace("\\n", "\n"), expected, id=request)


def plain(found: LengthRequest | None):
    return found and (found.lower, found.upper, found.unit)


@pytest.mark.parametrize(("request_", "expected"), rows())
def test_the_table(request_, expected):
    assert plain(find_length_request(request_)) == expected


def test_the_table_is_as_large_as_promised_in_both_languages():
    texts = [row.values[0] for row in rows()]
    chinese = [text for text in texts if any("\u4e00" <= c <= "\u9fff" for c in text)]
    assert len(texts) == len(set(texts)) and len(chinese) >= 100 and len(texts) - len(chinese) >= 100


def test_kinds():
    kinds = {"500 words": "about", "over 500 words": "at least", "500字以内": "at most", "500-600字": "between"}
    assert {text: find_length_request(text).kind for text in kinds} == kinds


@given(st.integers(SMALLEST, 99_999))
@settings(max_examples=200, deadline=None)
def test_any_number_however_it_is_written(number):
    expected = (round(number * 0.9), round(number * 1.1))
    for text in (
        f"{number} words",
        f"{number:,} words",
        f"写{number}字",
        f"写{han(number)}字",
        f"a {spell(number)} word text",
    ):
        found = find_length_request(text)
        assert found is not None and (found.lower, found.upper) == expected, text


@given(st.text(alphabet="写8 k0千万百两字以内at least words-~到多.,()每total", max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_text_gives_a_range_or_none(text):
    found = find_length_request(text)
    assert found is None or 0 < found.lower <= found.upper


class Counted:
    """A compiled expression that counts the characters it is given."""

    def __init__(self, pattern: re.Pattern[str], count: Callable[[int], None]) -> None:
        self._pattern, self._count = pattern, count

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(text: str, *places: int) -> Any:
            self._count(len(text))
            return getattr(self._pattern, name)(text, *places)

        return call


def read_counting(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[LengthRequest | None, int]:
    """The range, and how many characters all expressions were given on the way to it."""
    given: list[int] = []
    counted = {
        name: Counted(value, given.append) for name, value in vars(patterns).items() if isinstance(value, re.Pattern)
    }
    counted["BEFORE"] = tuple((Counted(pattern, given.append), *rest) for pattern, *rest in patterns.BEFORE)
    with monkeypatch.context() as patch:
        for name, value in counted.items():
            patch.setattr(patterns, name, value)
        return find_length_request(text), sum(given)


@pytest.mark.parametrize(
    ("hostile", "end", "expected"),
    [
        ("at least about ", "800 words", LengthRequest(800, 880, "words", "at least")),
        ("8-", "", None),
        ("一", "字", None),
        ("one hundred ", "", None),
        ("800 words, ", "", LengthRequest(720, 880, "words", "about")),
        ("at least 80 and at most ", "", None),
    ],
)
def test_the_work_on_hostile_texts_grows_with_their_length_alone(monkeypatch, hostile, end, expected):
    times = 50_000 // len(hostile)
    found, work = read_counting(hostile * (times // 2) + end, monkeypatch)
    again, doubled = read_counting(hostile * times + end, monkeypatch)
    assert found == again == expected
    assert 0 < doubled <= 2.5 * work + 1000
    assert doubled <= 150 * len(hostile * times), "a window around each number"


def test_lone_digits_after_a_scale():
    assert [parse_number(text) for text in ("一千五", "一千零五", "1万2")] == [(1500, 1), (1005, 1), (12000, 10000)]


def han(number: int) -> str:
    digits = "零一二三四五六七八九"
    if number >= 10_000:
        rest = number % 10_000
        return han(number // 10_000) + "万" + (("零" if rest < 1000 else "") + han(rest) if rest else "")
    parts, gap = "", False
    for scale, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // scale % 10
        if digit:
            parts += ("零" if gap and parts else "") + digits[digit] + name
        gap = not digit
    return parts


def spell(number: int) -> str:
    ones = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    ones += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
    tens = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    if number >= 1000:
        return f"{spell(number // 1000)} thousand {spell(number % 1000)}".strip()
    if number >= 100:
        rest = spell(number % 100)
        return f"{ones[number // 100]} hundred" + (f" and {rest}" if rest else "")
    if number >= 20:
        return tens[number // 10] + (f"-{ones[number % 10]}" if number % 10 else "")
    return ones[number]
