"""Phrasings with ranges written by hand, in the tables data/length_*.tsv, and every pair of a minimum and a maximum."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.data.text import length_patterns, length_words
from megatron_lwz.data.text.length_patterns import SMALLEST
from megatron_lwz.data.text.length_request import LengthRequest, find_length_request, read_length

TABLES = sorted((Path(__file__).parent / "data").glob("length_*.tsv"))


def rows():
    for table in TABLES:
        for line in table.read_text(encoding="utf-8").split("\n"):
            if line and not line.startswith("#"):
                lower, upper, unit, request = line.split("\t")
                expected = None if lower == "-" else (int(lower), int(upper), unit)
                yield pytest.param(request.replace("\\n", "\n"), expected, id=request)


def plain(found: LengthRequest | None):
    return found and (found.lower, found.upper, found.unit)


@pytest.mark.parametrize(("request_", "expected"), rows())
def test_the_tables(request_, expected):
    assert plain(find_length_request(request_)) == expected


def test_the_tables_are_as_large_as_promised_in_both_languages():
    texts = [row.values[0] for row in rows()]
    chinese = [text for text in texts if any("\u4e00" <= c <= "\u9fff" for c in text)]
    assert len(texts) == len(set(texts)) and len(chinese) >= 300 and len(texts) - len(chinese) >= 450


def test_kinds_name_the_bounds_that_are_stated():
    kinds = {
        "500 words": "about",
        "over 500 words": "at least",
        "500字以内": "at most",
        "500-600字": "between",
        "500 words, at most 600": "at most",
        "500 words, at least 400": "at least",
        "500 words ± 10%": "between",
        "at least 500 and at most 500 words": "about",
    }
    assert {text: find_length_request(text).kind for text in kinds} == kinds


@pytest.mark.parametrize(
    ("text", "unclear"),
    [
        ("Write an essay on bees.", False),
        ("Write 500 words on bees.", False),
        ("Summarize this 5000-word article.", False),
        ("Each section should have 500 words.", False),
        ("at least 1000 words, at most 800 words", True),
        ("Write 500 words. Make it 800 words.", True),
        ("至少1000字，最多800字", True),
        ("at least 800 words and at most 5 pages", True),
    ],
)
def test_lengths_that_disagree_are_told_from_no_length(text, unclear):
    assert read_length(text).unclear is unclear


MINIMUM = [
    "at least {}",
    "no less than {}",
    "not fewer than {}",
    "a minimum of {}",
    "min {}",
    "min. {}",
    "more than {}",
    "over {}",
    "{} minimum",
    "{} or more",
    "{} at least",
    "{}+",
    "not under {}",
    "upwards of {}",
    ">= {}",
    "longer than {}",
    "it must not fall below {}",
    "a lower limit of {}",
]
MAXIMUM = [
    "at most {}",
    "no more than {}",
    "not over {}",
    "a maximum of {}",
    "max {}",
    "max. {}",
    "less than {}",
    "under {}",
    "{} maximum",
    "{} or less",
    "{} at most",
    "{} tops",
    "up to {}",
    "<= {}",
    "don't exceed {}",
    "it shouldn't be longer than {}",
    "capped at {}",
    "an upper limit of {}",
]
HAN_MINIMUM = [
    "至少{}",
    "最少{}",
    "起码{}",
    "不少于{}",
    "不得低于{}",
    "{}以上",
    "{}起",
    "超过{}",
    "大于{}",
    "最低{}",
    "下限{}",
    "≥{}",
    "{}打底",
]
HAN_MAXIMUM = [
    "最多{}",
    "至多{}",
    "不超过{}",
    "不多于{}",
    "不能高于{}",
    "{}以下",
    "{}以内",
    "{}封顶",
    "少于{}",
    "上限{}",
    "≤{}",
    "控制在{}以内",
    "顶多{}",
]


def pairs(minimum: list[str], maximum: list[str], joints: list[str], unit: str) -> Iterator[str]:
    """Every minimum with every maximum. The order, what joins them and where the unit stands change from pair to pair."""
    for number, (least, most) in enumerate(itertools.product(minimum, maximum)):
        bounds = [(least, 800), (most, 1000)][:: -1 if number % 2 else 1]
        units = [(unit, unit), (unit, ""), ("", unit)][number % 3]
        texts = [
            text.replace("{}+", f"{{}}+{own}").replace("{}", f"{value}{own}", 1)
            for (text, value), own in zip(bounds, units, strict=True)
        ]
        yield joints[number % len(joints)].join(texts)


ENGLISH_PAIRS = list(pairs(MINIMUM, MAXIMUM, [" and ", ", ", " but ", "; ", ". "], " words"))
CHINESE_PAIRS = list(pairs(HAN_MINIMUM, HAN_MAXIMUM, ["，", "、", "且", "，但", "；", "。", "，同时"], "字"))


def test_every_minimum_with_every_maximum_gives_both_bounds():
    asked = {f"Write an essay on bees, {pair}.": "words" for pair in ENGLISH_PAIRS}
    asked |= {f"写一篇作文，{pair}。": "characters" for pair in CHINESE_PAIRS}
    wrong = {text: plain(find_length_request(text)) for text in asked}
    assert {text: found for text, found in wrong.items() if found != (800, 1000, asked[text])} == {}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Each section should have ", "."),
        ("The sections have ", " each."),
        ("Write three essays, ", "."),
        ("Write an essay. The introduction should have ", "."),
        ("每段", "。"),
        ("写三篇日记，", "。"),
        ("写一篇作文。开头", "。"),
    ],
)
def test_no_pair_of_bounds_of_parts_gives_a_range(before, after):
    bounds = (ENGLISH_PAIRS if before.isascii() else CHINESE_PAIRS)[::5]
    assert [text for pair in bounds if find_length_request(text := before + pair + after) is not None] == []


@given(st.integers(SMALLEST, 99_999))
@settings(max_examples=200)
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
@settings(max_examples=300)
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
    with monkeypatch.context() as patch:
        for module in (length_patterns, length_words):
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern):
                    patch.setattr(module, name, Counted(value, given.append))
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
        ("800 words ± 5 % ", "", None),
        ("between 800 and ", "", None),
        ("not ", "800 words", None),
        ("8 000 ", "", None),
        ("introduction 800 words. ", "", None),
        ("write the ", "", None),
    ],
)
def test_the_work_on_hostile_texts_grows_with_their_length_alone(monkeypatch, hostile, end, expected):
    times = 20_000 // len(hostile)
    found, work = read_counting(hostile * (times // 2) + end, monkeypatch)
    again, doubled = read_counting(hostile * times + end, monkeypatch)
    assert found == again == expected
    assert 0 < doubled <= 2.5 * work + 1000
    assert doubled <= 150 * len(hostile * times), "a window around each number"


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
