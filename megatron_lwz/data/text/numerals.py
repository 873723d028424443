"""Parses numbers as people write them in requests: "2,000", "2 000", "3k", "two thousand", "一千五百", "1.5万", "1万2千"."""

from __future__ import annotations

import re

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {
    **{name: value for value, name in enumerate(_ONES)},
    **{name: 10 * place for place, name in enumerate(_TENS, start=2)},
}
_LARGE = {"hundred": 100, "thousand": 1000}

_NAMES = "|".join(sorted(_SMALL, key=len, reverse=True))
_WORD = f"(?:{_NAMES}|hundred|thousand)"
_SPELLED = (
    rf"(?:an?[ -](?=hundred|thousand))?{_WORD}(?:[ -]{_WORD})*"
    rf"(?: and (?:{_NAMES})(?:[ -](?:{_NAMES}))?(?![ -](?:hundred|thousand)))?"
)
_LONGEST = 100
"""Maximum number of characters of a number. Longer strings of digits are no length."""
_POINTS = r"[1-9]\d{0,2}(?:\.\d{3})+"
_DIGITS = (
    r"(?:[1-9]\d{0,2}(?:(?:,\d{3})+|(?:'\d{3})+|(?: \d{3})+)(?!\d)(?:\.\d+)?|"
    rf"{_POINTS}(?![\d.]|[ -]?k(?![a-z])|[ -]?thousand|[ -]?hundred|\s?[百千万]|w)|\d+(?:\.\d+)?)"
)
"""A number in digits. "2.000" is two thousand, as in much of Europe, because no text has a length of 2.0."""

_HAN_DIGITS = {c: v for v, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10_000}
_SCALES = {**_HAN_SCALES, **_LARGE, "k": 1000, "w": 10_000, "": 1}
_HAN = "[零〇一二两三四五六七八九十百千万]"
_FORMAL = str.maketrans("壹贰叁肆伍陆柒捌玖拾佰仟萬兩", "一二三四五六七八九十百千万两")

NUMBER = (
    rf"(?:{_DIGITS}(?:[ -]?(?:k(?![a-z])|thousand|hundred)|w(?![a-z0-9/])|\s?[百千万](?:\d[百千]?)?)?|"
    rf"\b{_SPELLED}(?![a-z])|{_HAN}+)"
)
"""Pattern of one number in lower-case text whose formal and traditional numerals were mapped by `simplify`.

"1w" is 一万, as in "1w字".
"""


def simplify(text: str) -> str:
    """Maps formal (壹仟) and traditional (萬, 兩) numerals to plain simplified ones. The length stays the same."""
    return text.translate(_FORMAL)


def parse_number(text: str) -> tuple[float, int] | None:
    """Returns the value of a match of NUMBER and its last scale (1000 in "3k", else 1), None if it is no number."""
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    if re.fullmatch(rf"{_HAN}+", text):
        value = _parse_han(text)
        return (float(value), _HAN_SCALES.get(text[-1], 1)) if value else None
    if found := re.fullmatch(rf"({_DIGITS})[ -]?(k|w|thousand|hundred|)", text):
        scale = _SCALES[found[2]]
        return _parse_digits(found[1], scale) * scale, scale
    if found := re.fullmatch(rf"({_DIGITS})\s?([百千万])(?:(\d)([百千])?)?", text):
        scale = _SCALES[found[2]]
        rest = int(found[3] or 0) * (_SCALES[found[4]] if found[4] else scale // 10)
        return _parse_digits(found[1], scale) * scale + rest, scale
    spelled = _parse_spelled(re.split(r"[ -]", text))
    scale = next((s for name, s in _LARGE.items() if text.endswith(name)), 1)
    return (spelled, scale) if spelled else None


def adjacent_pair(text: str) -> tuple[int, int] | None:
    """Returns the two bounds of "两三千" (2000, 3000) or "五六百" (500, 600), None for any other numeral."""
    found = re.fullmatch(r"([一二两三四五六七八])([二两三四五六七八九])([百千万])", text)
    if found is None:
        return None
    low, high, scale = _HAN_DIGITS[found[1]], _HAN_DIGITS[found[2]], _HAN_SCALES[found[3]]
    return (low * scale, high * scale) if low < high <= low + 2 else None


def _parse_digits(text: str, scale: int) -> float:
    """Parses digits with separators. Points separate thousands only before no scale: "1.500" but not "1.500k"."""
    if scale == 1 and re.fullmatch(_POINTS, text):
        text = text.replace(".", "")
    return float(re.sub("[, ']", "", text))


def _parse_spelled(words: list[str]) -> float:
    """Parses words: "fifteen hundred" is 1500, "a thousand two hundred and fifty" 1250. Returns 0 for no number."""
    total = current = 0
    for word in words:
        if word in _SMALL:
            current += _SMALL[word]
        elif word in ("a", "an"):
            current += 1
        elif word == "hundred":
            current = (current or 1) * 100
        elif word == "thousand":
            total, current = total + (current or 1) * 1000, 0
    return total + current


def _parse_han(text: str) -> int:
    """Parses Chinese numerals.

    一千五 is 1500 (the last digit takes the next scale down), 一五〇〇 is 1500 (digit by digit), 千 alone is 1000.
    """
    if not any(c in _HAN_SCALES for c in text):
        return int("".join(str(_HAN_DIGITS[c]) for c in text))
    total = section = digit = 0
    last_scale = 1
    for place, c in enumerate(text):
        if c in _HAN_DIGITS:
            digit = _HAN_DIGITS[c]
            if place and text[place - 1] in "零〇":
                last_scale = 10  # 一千零五 is 1005
            continue
        scale = _HAN_SCALES[c]
        if scale == 10_000:
            total, section = (total + section + digit or 1) * scale, 0
        else:
            section += (digit or 1) * scale
        digit, last_scale = 0, scale
    return total + section + digit * max(last_scale // 10, 1)
