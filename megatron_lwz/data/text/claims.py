"""Plain statements of a text that can be checked against each other: years, ages and sizes of names, English and Chinese.

Only what is said without a doubt of a proper name is taken: no pronouns, no quoted speech, no sentence that hedges. So most
statements of a text are not seen; what is seen is meant to be right.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megatron_lwz.data.text.numerals import NUMBER, parse_number

Attribute = Literal["born", "died", "founded", "high", "long", "wide", "deep"]


@dataclass(frozen=True)
class Claim:
    """A value of a name: a year, or a size with its unit. It lies from `low` to `high`; text[start:end] says so."""

    subject: str
    attribute: Attribute
    low: float
    high: float
    start: int
    end: int
    unit: str = ""


MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_CAP = r"[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ’']+"
_NAME = rf"(?P<name>{_CAP}(?:[ -](?:(?:de|da|van|von|of|the)[ -])?{_CAP}|[ ][IVX]+\b){{0,3}})"
# A name begins a clause; "the sister of Anna was born" says nothing of Anna.
_CLAUSE = (
    r"(?:(?<=[.!?;:—–(] )|(?<=\n)|(?<=\A)|(?<=, )|(?<=, and )|(?<=, but )|(?<=that )|(?<=when )|(?<=because )|(?<=while ))"
    r"(?:[Tt]he )?"
)
_YEAR = r"(?:the year )?(?P<year>[12]\d{3})(?!\d|[-–]\d| ?(?:BC|B\.C))"
_MONTH = f"(?:{'|'.join(MONTHS)})"
_DATE = (
    rf"(?:(?:the )?\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {_MONTH},? |{_MONTH}(?: \d{{1,2}}(?:st|nd|rd|th)?)?,? (?:of )?)?"
)
_PLACE = rf"(?:(?:in|at|near) (?:the )?{_CAP}(?:[ -]{_CAP}){{0,2}},? )?"
_WHEN = rf"{_PLACE}(?:in|on) {_DATE}{_YEAR}"
_AGE = r"(?P<age>\d{1,3}|[a-z]+(?:-[a-z]+)?)(?: years (?:old|of age))?(?=[,.;!?—\n]| and | when )"
_SIZE = r"(?P<value>\d[\d,]*(?:\.\d+)?) ?(?P<unit>met(?:re|er)s|feet|kilomet(?:re|er)s|miles) (?P<dimension>high|long|wide|deep)"
_HAN_YEAR = r"(?P<year>\d{4}|[一二三四五六七八九〇零]{4})年"
_HAN_DATE = r"(?:[\d一二三四五六七八九十]{1,3}月)?(?:[\d一二三四五六七八九十]{1,3}[日号])?"
_HAN_START = r"(?:(?<=[，。！？；：（\s])|(?<=\A))"
_HAN_NAME = rf"{_HAN_START}(?P<name>[\u4e00-\u9fff·]{{2,6}}?)"
_HAN_WAS = "(?:已经|刚刚|刚|才|正好|正)?"
_HAN_AGE = r"(?P<age>\d{1,3}|[一二三四五六七八九十百]{1,4})"

_PATTERNS: Sequence[tuple[Attribute | Literal["age", "size"], str]] = (
    ("born", rf"{_CLAUSE}{_NAME}(?:,? born| (?:was|had been) born) {_WHEN}"),
    ("died", rf"{_CLAUSE}{_NAME} (?:had )?(?:died|passed away|was killed) (?:of [a-z ]{{1,30}}? )?{_WHEN}"),
    ("founded", rf"{_CLAUSE}{_NAME}(?:,| was| had been) (?:founded|established) {_WHEN}"),
    ("age", rf"\bIn {_DATE}{_YEAR},? {_NAME},? (?:was|turned|had just turned) {_AGE}"),
    ("age", rf"{_CLAUSE}{_NAME} (?:was|turned) (?P<age>\d{{1,3}}|[a-z]+(?:-[a-z]+)?)(?: years old)? in {_DATE}{_YEAR}"),
    ("size", rf"{_CLAUSE}{_NAME} (?:is|was|measures|measured) {_SIZE}"),
    ("born", rf"{_HAN_NAME}(?:出生于|生于|出生在){_HAN_YEAR}"),
    ("born", rf"{_HAN_NAME}[于在]?{_HAN_YEAR}{_HAN_DATE}(?:出生|生于)"),
    ("died", rf"{_HAN_NAME}[于在]{_HAN_YEAR}{_HAN_DATE}(?:去世|逝世|病逝|牺牲)"),
    ("founded", rf"{_HAN_NAME}(?:成立|创立|创办|创建|始建)于{_HAN_YEAR}"),
    ("founded", rf"{_HAN_NAME}[于在]{_HAN_YEAR}{_HAN_DATE}(?:成立|创立|创办|创建)"),
    ("age", rf"{_HAN_START}{_HAN_YEAR}[，,]?(?P<name>[\u4e00-\u9fff·]{{2,4}}?){_HAN_WAS}满?{_HAN_AGE}岁(?=[，。；！？])"),
)  # fmt: skip
_COMPILED = [(kind, re.compile(pattern)) for kind, pattern in _PATTERNS]
_NUMBER = re.compile(NUMBER)
_ANCHOR = re.compile(rf"(?<!\d)[12]\d{{3}}(?!\d)|{_HAN_YEAR}|\d (?:met(?:re|er)s|feet|kilomet|miles) ")
"""What every claim holds: a year, or a size."""

_NO_NAMES = {
    *MONTHS, *DAYS, "The", "He", "She", "It", "They", "We", "You", "His", "Her", "Its", "Their", "Our", "My", "This", "That",
    "These", "Those", "There", "Here", "Who", "When", "Where", "While", "After", "Before", "Then", "Now", "One", "Both",
    "Mother", "Father", "Grandmother", "Grandfather", "Sister", "Brother", "Nobody", "Everyone", "Someone", "Another",
}  # fmt: skip
_FULL = re.compile(rf"{_CAP}(?:[ -](?:{_CAP}|[IVX]+\b)){{1,4}}")
_APART = re.compile(r" (?:[IVX]+|[JS]r|Junior|Senior)\b")
_HAN_NO_NAME = re.compile(
    "[他她它我你您这那谁的在是和与了着过把被让其年岁]|父亲|母亲|爸|妈|爷爷|奶奶|外公|外婆|哥哥|弟弟|姐姐|妹妹|儿子|女儿|丈夫|妻子|老人|孩子|男人|女人|自己|后来|最后|先后|同年"
)
_DOUBT = re.compile(
    r"\b(?:if|would|could|might|may have|perhaps|maybe|probably|claim\w*|suppos\w*|alleg\w*|rumou?r\w*|according|legend\w*|lies?|lied|"
    r"lying|forged|false\w*|wrong\w*|mist\w*|instead|not|never|or|dream\w*|imagin\w*|pretend\w*|either|whether|say|says|said)\b|n['’]t\b|"
    r"[“”\"「」『』]|如果|若|假如|据说|传说|相传|可能|也许|大概|或|不是|并非|没有|谎|误|梦|左右|前后|大约|约",
    re.IGNORECASE,
)
_ENDS = re.compile(r"[.!?](?=\s|$)|[。！？\n]")


def find_claims(text: str) -> list[Claim]:
    """Returns the claims in the order of the text. A short form of a longer name of the text stands for it."""
    places = windows(text, _ANCHOR, before=200, after=80)
    found = {(c.start, c.attribute): c for kind, pattern in _COMPILED for c in _matches(text, kind, pattern, places)}
    return _joined(text, [found[key] for key in sorted(found)])


def windows(text: str, anchor: re.Pattern[str], *, before: int, after: int) -> list[tuple[int, int]]:
    """Returns the stretches around the matches of `anchor`, joined where they touch: a slow search may keep to them."""
    found: list[tuple[int, int]] = []
    for match in anchor.finditer(text):
        start, end = max(0, match.start() - before), min(len(text), match.end() + after)
        if found and start <= found[-1][1]:
            start = found.pop()[0]
        found.append((start, end))
    return found


def _matches(text: str, kind: str, pattern: re.Pattern[str], places: Sequence[tuple[int, int]]) -> Iterator[Claim]:
    for match in (match for place in places for match in pattern.finditer(text, *place)):
        name = _name(match["name"])
        if name is None or _DOUBT.search(_sentence(text, match.start(), match.end())):
            continue
        if kind == "size":
            size = float(match["value"].replace(",", ""))
            dimension: Attribute = match["dimension"]  # type: ignore[assignment]
            unit = match["unit"].replace("meters", "metres")
            yield Claim(name, dimension, size, size, match.start("name"), match.end(), unit)
            continue
        year = parse_number(match["year"])
        if year is None:
            continue
        if kind != "age":
            yield Claim(name, kind, year[0], year[0], match.start("name"), match.end())  # type: ignore[arg-type]
        elif (age := _number(match["age"])) is not None and age <= 120:
            counted_from_one = not name.isascii()  # a Chinese age may be one or two higher than the years lived
            yield Claim(name, "born", year[0] - age - 1, year[0] - age + counted_from_one, match.start(), match.end())


def _number(text: str) -> float | None:
    whole = _NUMBER.fullmatch(text.replace("-", " ")) or _NUMBER.fullmatch(text)
    found = parse_number(whole[0]) if whole else None
    return found[0] if found else None


def _name(text: str) -> str | None:
    """Returns a proper name, None for what is none."""
    name = text.removeprefix("The ").strip()
    if not name.isascii() and _HAN_NO_NAME.search(name):
        return None
    return None if name.split(" ")[0] in _NO_NAMES or name.endswith(("'s", "’s")) else name


def _sentence(text: str, start: int, end: int) -> str:
    """Returns the sentence around text[start:end]."""
    before = max((m.end() for m in _ENDS.finditer(text, max(0, start - 400), start)), default=max(0, start - 400))
    after = _ENDS.search(text, end)
    return text[before : min(after.start() if after else len(text), end + 400)]


def _joined(text: str, claims: Sequence[Claim]) -> list[Claim]:
    """Gives "Anna" the subject "Anna Petrova" if the text has no other longer name with it, else "Anna" is nobody's.

    A longer name that tells two of one name apart (Henry V, Jr.) makes the short one nobody's, too.
    """
    longer: defaultdict[str, set[str]] = defaultdict(set)
    if any(claim.subject.isascii() for claim in claims):
        for match in _FULL.finditer(text):
            words = re.split("[ -]", match[0])
            while words and words[0] in _NO_NAMES:
                words.pop(0)
            for word in words:
                longer[word].add(" ".join(words))
    kept = []
    for claim in claims:
        first = claim.subject.split(" ")[0]
        forms = {name for name in longer[first] if f" {claim.subject} " in f" {name} "} - {claim.subject}
        whole = next(iter(forms), claim.subject)
        if len(forms) < 2 and not _APART.search(whole.removeprefix(claim.subject)):
            kept.append(replace(claim, subject=whole))
    return kept
