"""Statements of a text that cannot all be true: claims about one name, and days that the calendar does not have."""

from __future__ import annotations

import re
from calendar import isleap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from megatron_lwz.data.text.claims import DAYS, MONTHS, Claim, find_claims, windows

_MONTH = rf"(?P<month>{'|'.join(MONTHS)})"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:,? (?P<year>1[6-9]\d{2}|2\d{3})\b)?"
_WEEKDAY = rf"(?:\b(?P<weekday>{'|'.join(DAYS)}),? (?:the )?)?"
_DATES = (
    re.compile(rf"{_WEEKDAY}(?<![\d.])\b{_DAY}(?: of)? {_MONTH}\b{_YEAR}"),
    # "In June 31 people came" holds no date: an ordinal, a year or the end of the clause says that it is one.
    re.compile(rf"{_WEEKDAY}\b{_MONTH} {_DAY}\b(?!:|\.\d|,\d|%)(?:(?<=[a-z])|(?=,? [12]\d{{3}}\b|[.,;!?)]|$)){_YEAR}"),
    re.compile(
        r"(?:(?P<year>1[6-9]\d{2}|2\d{3})年)?(?<!\d)(?P<month>\d{1,2})月(?P<day>\d{1,2})日"
        r"(?:[，,（( ]{0,2}(?:星期|周|礼拜)(?P<weekday>[一二三四五六日天]))?"
    ),
)
_ANCHOR = re.compile(rf"{'|'.join(MONTHS)}|\d月\d")
_HAN_DAYS = "一二三四五六日"
_LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True)
class Contradiction:
    """What cannot be true, and the passages that say so, in the order of the text."""

    about: str
    passages: tuple[tuple[int, int], ...]
    """text[start:end] of each."""


def contradictions(claims: list[Claim]) -> list[Contradiction]:
    """Returns where a claim of a name excludes the first one of the same attribute, each value once, and early deaths."""
    groups: defaultdict[tuple[str, str, str], list[Claim]] = defaultdict(list)
    for claim in claims:
        groups[claim.subject, claim.attribute, claim.unit].append(claim)
    found = []
    for (subject, attribute, _), members in groups.items():
        first, seen = members[0], set()
        for other in members[1:]:
            apart = other.low > first.high or other.high < first.low
            if apart and (other.low, other.high) not in seen:
                seen.add((other.low, other.high))
                found.append(Contradiction(f"{subject}: {attribute}", _passages(first, other)))
        born = groups.get((subject, "born", ""))
        if attribute == "died" and born and first.high < born[0].low:
            found.append(Contradiction(f"{subject}: died before being born", _passages(born[0], first)))
    return sorted(found, key=lambda one: one.passages[-1])


def calendar_faults(text: str) -> Iterator[Contradiction]:
    """Yields the days that no calendar has (31 April), and weekdays that do not fit their date, each spelling once.

    Years from 1600 on, by the Gregorian calendar.
    """
    seen = set()
    places = windows(text, _ANCHOR, before=40, after=40)
    for pattern in _DATES:
        for match in (match for place in places for match in pattern.finditer(text, *place)):
            fault = _fault(match)
            if fault and match[0] not in seen:
                seen.add(match[0])
                yield Contradiction(fault, (match.span(),))


def find_contradictions(text: str, *, facts: bool = True, calendar: bool = True) -> tuple[int, list[Contradiction]]:
    """Returns the number of claims about names, and the contradictions."""
    claims = find_claims(text) if facts else []
    return len(claims), [*contradictions(claims), *(calendar_faults(text) if calendar else ())]


def _fault(match: re.Match[str]) -> str:
    """Returns what is wrong with a date, "" if nothing is."""
    han = match["month"].isdigit()
    month = int(match["month"]) if han else MONTHS.index(match["month"]) + 1
    day, year = int(match["day"]), int(match["year"]) if match["year"] else None
    if not 1 <= month <= 12 or not 1 <= day <= 31:
        return ""  # rather something else than a date
    last = 28 if month == 2 and year is not None and not isleap(year) else _LENGTHS[month - 1]
    if day > last:
        return "a day that does not exist"
    if year is None or not match["weekday"]:
        return ""
    said = _HAN_DAYS.index(match["weekday"].replace("天", "日")) if han else DAYS.index(match["weekday"])
    true = date(year, month, day).weekday()
    return "" if said == true else f"the weekday of the date: it is a {DAYS[true]}"


def _passages(first: Claim, second: Claim) -> tuple[tuple[int, int], ...]:
    return tuple(sorted([(first.start, first.end), (second.start, second.end)]))
