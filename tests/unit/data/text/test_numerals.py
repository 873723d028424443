import re

import pytest

from megatron_lwz.data.text.numerals import NUMBER, adjacent_pair, parse_number


@pytest.mark.parametrize(
    ("text", "value", "scale"),
    [
        ("一千五", 1500, 1),
        ("一千零五", 1005, 1),
        ("1万2", 12_000, 10_000),
        ("2,000", 2000, 1),
        ("2 000", 2000, 1),
        ("2'000", 2000, 1),
        ("2.000", 2000, 1),
        ("12.500", 12_500, 1),
        ("1,234,567", 1_234_567, 1),
        ("1.5k", 1500, 1000),
        ("1.500k", 1500, 1000),
        ("1.500万", 15_000, 10_000),
        ("1.5w", 15_000, 10_000),
        ("2.5", 2.5, 1),
        ("0.500", 0.5, 1),
    ],
)
def test_separators_and_scales(text, value, scale):
    assert re.fullmatch(NUMBER, text) and parse_number(text) == (value, scale)


@pytest.mark.parametrize(
    ("text", "start"),
    [("2 0000", "2"), ("1,2345", "1"), ("2008 500 words", "2008"), ("1500 w/ pictures", "1500"), ("2wd", "2")],
)
def test_what_does_not_belong_to_a_number(text, start):
    assert re.match(NUMBER, text).group() == start


def test_two_neighbouring_digits_are_a_range():
    assert [adjacent_pair(text) for text in ("两三千", "一两千", "五六百", "三两千")] == [
        (2000, 3000),
        (1000, 2000),
        (500, 600),
        None,
    ]
