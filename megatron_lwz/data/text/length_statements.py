"""Reads a statement: which of its numbers are lengths, in which unit, and which bounds they state."""

from __future__ import annotations

from itertools import pairwise

from megatron_lwz.data.text import length_patterns as patterns
from megatron_lwz.data.text.length import Unit
from megatron_lwz.data.text.length_bounds import AFTER, BEFORE, EITHER, LIGHT, attach_bounds
from megatron_lwz.data.text.length_tokens import LIST_COMMA, Count, Statement, Token

LARGEST = 1_000_000


def read_statement(statement: Statement) -> None:
    """Fills in the counts of a statement: its lengths, which may still be of parts or of given texts."""
    numbers = [token for token in statement.tokens if token.kind == "number"]
    statement.doubtful = any(_is_ambiguous(token, statement.text) for token in numbers)
    counts = attach_bounds(statement, _apply_tolerances(statement, _join_numbers(statement)))
    _bound_alternatives(statement, counts)
    _give_units(statement, counts)
    bounded = any(count.upper and count.unit and count.high >= patterns.SMALLEST for count in counts)
    for count in counts:
        smallest = 1 if bounded and count.lower and not count.upper else patterns.SMALLEST
        if count.unit is not None and smallest <= count.low and count.high <= LARGEST:
            statement.counts.append(count)


def _is_ambiguous(token: Token, text: str) -> bool:
    """Returns whether a number may be two: "chapter 3 500 words", or item 2 of a list, "2.800字"."""
    before, after = text[max(0, token.start - 12) : token.start], text[token.end : token.end + 3]
    if " " in token.text and token.text[0].isdigit() and patterns.DESIGNATION.search(before):
        return True
    if patterns.POINTS.fullmatch(token.text) and (before.endswith("\n") or after.lstrip(" 个余多").startswith("字")):
        return True
    return before.endswith(LIST_COMMA)


def _join_numbers(statement: Statement) -> list[Count]:
    """Makes counts of the numbers: one of "800-1000 words", and one of "500 (five hundred) words"."""
    counts: list[Count] = []
    for place, token in enumerate(statement.tokens):
        if token.kind != "number":
            continue
        count = Count(place, place, token.low, token.high)
        joined = _join(statement, counts[-1], count) if counts else None
        if joined is None:
            counts.append(count)
        else:
            start = statement.tokens[joined.first].start
            changed = joined.pair and patterns.CHANGED_FROM.search(statement.text[max(0, start - 70) : start])
            counts[-1] = count if changed else joined  # "cut it from 500 to 200 words"
    return counts


def _join(statement: Statement, last: Count, count: Count) -> Count | None:
    place = count.first
    inner = statement.tokens[last.last + 1 : place]
    if [token.text for token in inner] == ["("] and statement.kind(place + 1) == "sep" and last.low == count.low:
        return Count(last.first, place + 1, last.low, last.high)
    links = [token.kind for token in inner if token.kind in ("joint", "or", "and")]
    if not links or last.pair or not {token.kind for token in inner} <= {"joint", "or", "and", "unit", "about", "adj"}:
        return None
    low, high, scale = last.low, count.high, statement.tokens[place].scale
    if low < 100 <= high and scale > 1 and low * scale <= high:  # "2-3k", "八到九千"
        low *= scale
    if "or" in links and (len(links) > 1 or low < patterns.SMALLEST):
        return None
    if "and" in links and not _is_between(statement, last, count):
        return None
    units = {_unit(token) for token in (*inner, *statement.tokens[place + 1 : place + 3]) if token.kind == "unit"}
    return Count(last.first, place, low, high) if low < high and len(units) < 2 else None


def _is_between(statement: Statement, last: Count, count: Count) -> bool:
    """Returns whether "800 and 1000" is a range: after "between", or before 之间."""
    before = statement.skip(last.first - 1, {"about", "fill", "prep"}, -1)
    end = statement.tokens[count.last].end
    return statement.kind(before) == "between" or bool(patterns.SPAN_AFTER.match(statement.text[end : end + 20]))


def _apply_tolerances(statement: Statement, counts: list[Count]) -> list[Count]:
    """Widens the count before "± 10 %" or "give or take 200 words", or after "within 10 % of"."""
    kept: list[Count] = []
    waiting = 0.0
    for count in counts:
        percent = "percent" in (statement.kind(count.last + 1), statement.kind(count.first - 1))
        if _is_tolerance(statement, count, percent):
            if kept:
                _widen(statement, kept[-1], kept[-1].high * count.low / 100 if percent else count.low)
            else:
                waiting = count.low / 100
        elif not percent:
            kept.append(count)
            if waiting:
                _widen(statement, count, count.high * waiting)
                waiting = 0.0
        elif kept and _unit_after(statement, kept[-1]) is not None:  # "2000 words, 5 %" but not "…, 5 % dialogue"
            end = statement.tokens[statement.skip(count.last + 1, {"percent"}) - 1].end
            statement.doubtful |= not statement.text[end : end + 2].strip(" ,的").isalpha()
    return kept


def _is_tolerance(statement: Statement, count: Count, percent: bool) -> bool:
    leads = {"fill", "prep", "verb", "fixed", "not", "more", "less", "most_before", "most", "percent"}
    if statement.kind(statement.skip(count.first - 1, leads, -1)) == "tolerance":
        return True
    if not percent:
        return False
    after = statement.skip(count.last + 2, {"fill", "prep", "verb", "fixed", "adj", "more", "not"})
    before = statement.tokens[count.first - 1].text if count.first else ""
    return statement.kind(after) == "tolerance" or before in ("within", "上下", "左右")


def _widen(statement: Statement, count: Count, width: float) -> None:
    """Turns a count into a range around it."""
    statement.doubtful |= count.pair or not 0 < width < count.low
    count.low, count.high = count.low - width, count.high + width


def _give_units(statement: Statement, counts: list[Count]) -> None:
    for count in counts:
        count.unit = _unit_after(statement, count) or _unit_of_label(statement, count)
        count.own_unit = count.unit is not None
    owners = [count for count in counts if count.own_unit]
    nearest = owners[0].unit if owners else None
    for count in counts:
        if count.own_unit:
            nearest = count.unit
        elif _is_of_something_else(statement, count):
            end = statement.tokens[count.last].end
            if count.bound and patterns.OF_PAGES.match(statement.text[end : end + 10]):
                # "at least 800 words and at most 5 pages": the maximum is unknown.
                statement.doubtful |= any(owner.bound and owner.lower != count.lower for owner in owners)
        elif owners and _shares_unit(statement, count):
            count.unit = nearest
        elif count.bound and count.low >= patterns.SMALLEST and not _is_topic(statement, count):
            statement.loose.append(count)


def _bound_alternatives(statement: Statement, counts: list[Count]) -> None:
    """Gives a length the bound of the pages it stands for: "no less than 3 pages or 1500 words"."""
    for pages, count in pairwise(counts):
        end = statement.tokens[pages.last].end
        linked = statement.kinds(pages.last + 1, count.first) <= {"part", "or", "and", "sep", "joint", "about", "adj"}
        if pages.bound and linked and not count.bound and patterns.OF_PAGES.match(statement.text[end : end + 10]):
            count.lower, count.upper = pages.lower, pages.upper


def _unit_after(statement: Statement, count: Count) -> Unit | None:
    for token in statement.tokens[count.first : count.last]:
        if token.kind == "unit":
            return _unit(token)
    passed = AFTER | EITHER | {"adj", "about", "joint", "tolerance", "percent", "("}
    place = statement.skip(count.last + 1, passed)
    return _unit(statement.tokens[place]) if statement.kind(place) in ("unit", "label") else None


def _unit_of_label(statement: Statement, count: Count) -> Unit | None:
    """Returns the unit of a label such as "word count:" before the count."""
    if _is_of_something_else(statement, count):
        return None
    passed = BEFORE | EITHER | (LIGHT - {"label"}) | {"not", "total", "("}
    place = statement.skip(count.first - 1, passed, -1)
    if statement.kind(place) != "label" or statement.kind(place - 1) == "number":  # "in 500 words: 2019 was …"
        return None
    return _unit(statement.tokens[place])


def _unit(token: Token) -> Unit:
    words = token.text.startswith(("word", "wd", "number", "length", "英", "单", "词"))
    return "words" if words else "characters"


def _is_of_something_else(statement: Statement, count: Count) -> bool:
    """Returns whether a number without a unit counts something else: "3 topics", "5段", "1000 people"."""
    place = count.last + 1
    while statement.kind(place) == "adj" or (statement.kind(place) == "joint" and statement.tokens[place].text == "-"):
        place += 1
    if statement.kind(place):
        return statement.kind(place) in ("part", "whole", "percent", "number")
    return statement.continues(place - 1)


def _shares_unit(statement: Statement, count: Count) -> bool:
    """Returns whether a number without a unit, beside a length, is one too: a bound, a range, a total, "ideally 800"."""
    if count.high < patterns.SMALLEST or _is_topic(statement, count):
        return False
    tokens = statement.tokens[count.first : count.last + 1]
    if count.pair:
        return not all(patterns.YEAR.fullmatch(token.text) for token in tokens if token.kind == "number")
    before = statement.kind(statement.skip(count.first - 1, {"fill"}, -1))
    return count.bound or before in ("total", "about") or statement.kind(count.last + 1) == "total"


def _is_topic(statement: Statement, count: Count) -> bool:
    """Returns whether a preposition only names a subject or a place: "2000 words about 1848", "words over 3 pages"."""
    before = statement.tokens[count.first - 1].text if count.first else ""
    if statement.kind(count.first - 2) == "unit":
        return patterns.TOPIC.fullmatch(before) is not None
    year = patterns.YEAR.fullmatch(statement.tokens[count.first].text)
    alone = not statement.kind(statement.skip(count.first - 2, {"sep", "stop"}, -1))
    return alone and year is not None and (before == "up to" or patterns.TOPIC.fullmatch(before) is not None)
