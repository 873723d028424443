"""Tells from the words around a count what it measures: the text to write, a part of it, or an existing text."""

from __future__ import annotations

import re
from typing import Literal

from megatron_lwz.data.text import length_patterns as patterns
from megatron_lwz.data.text.length_statements import AFTER, BEFORE, EITHER, LIGHT, Count, Statement

Scope = Literal["total", "whole", "part", "each", "other"]
"""total and whole: the text to write ("total" says so); part: a part that is named; each: each of several parts or texts;
other: an existing text, or words that are no text."""

_WINDOW = 70


def find_asked_parts(text: str) -> frozenset[str]:
    """Returns the names of the parts that the request asks for as such: "write the introduction of my thesis"."""
    return frozenset(match["part"] or match["han"] for match in patterns.PART_ASKED.finditer(text))


def find_scopes(statement: Statement, asked: frozenset[str]) -> list[Scope]:
    """Returns what each count of a statement measures. A minimum and a maximum side by side measure the same.

    asked: the result of `find_asked_parts`.
    """
    scopes: list[Scope] = []
    for place, count in enumerate(statement.counts):
        scope = _scope(statement, count, asked)
        if place and _same_thing(statement, statement.counts[place - 1], count):
            last = scopes[-1]
            if scope == "whole" and last in ("part", "each") and count.bound:
                scope = last
            elif scope in ("part", "each") and last == "whole" and count.bound and statement.counts[place - 1].bound:
                scopes[-1] = scope
            elif "total" in (scope, last) and {scope, last} <= {"total", "whole"}:
                scope = scopes[-1] = "total"
        scopes.append(scope)
    return scopes


def _same_thing(statement: Statement, last: Count, count: Count) -> bool:
    """Returns whether two neighbours in a sentence belong together: opposite bounds, or a number and its bound."""
    if statement.kinds(last.last + 1, count.first) & {"stop", "whole"} or not (count.bound or last.bound):
        return False
    return not (last.bound and count.bound and last.lower == count.lower)


def _scope(statement: Statement, count: Count, asked: frozenset[str]) -> Scope:
    tokens, text = statement.tokens, statement.text
    start = tokens[count.first].start
    bound_start = _start(statement, count, {"about", "not", "adj", "joint", "between", *BEFORE, *EITHER})
    plain_start = _start(statement, count, (LIGHT | BEFORE | EITHER | {"not", "instead", "("}) - {"verb", "prep", "joint"})
    before_start = _start(statement, count, LIGHT | BEFORE | EITHER | {"not", "instead", "("})
    sentence = start - len(_sentence(text, start))
    left, inner, plain, before = (
        text[min(sentence, place) : place] for place in (start, bound_start, plain_start, before_start)
    )
    after_unit = count.last + 1
    while statement.kind(after_unit) in {"unit", "adj", "joint"}:
        after_unit += 1
    end = statement.skip(after_unit, {"unit", "about", "tolerance", "percent", *AFTER, *EITHER})
    rights = [text[tokens[place - 1].end : tokens[place - 1].end + _WINDOW] for place in (after_unit, end)]
    if count.own_unit and patterns.NOT_A_LENGTH_AFTER.match(rights[0]):
        return "other"
    if patterns.STATED_OF_GIVEN.search(inner) and not patterns.REQUESTED.search(inner):
        return "other"
    if not (count.lower or count.upper):
        if any(patterns.GIVEN_BEFORE.search(part) for part in (left, inner, plain)):
            return "other"
        if not count.pair and patterns.OUT_OF.search(plain):
            return "other"
    return _part_or_whole(left, before, rights, asked)


def _part_or_whole(left: str, before: str, rights: list[str], asked: frozenset[str]) -> Scope:
    if any(patterns.PER_PART_AFTER.match(right) for right in rights):
        return "each"
    if patterns.MANY_AFTER.match(rights[0]) and not patterns.ARTICLE_BEFORE.search(left):
        return "each"
    total, each = patterns.TOTAL_BEFORE.search(left), patterns.PER_PART_BEFORE.search(before)
    if any(patterns.TOTAL_AFTER.match(right) for right in rights) or (
        total is not None and (each is None or each.start() < total.start())
    ):
        return "total"
    if each is not None:
        return "each"
    if patterns.PART_AFTER.match(rights[0]):
        return "part"
    part = patterns.PART_BEFORE.search(left)
    if part is not None:
        return "part" if (part["part"] or part["han"]) in asked else "each"
    later = patterns.PART_LATER.match(rights[0]) or patterns.PART_LATER.match(rights[1])
    if later is not None:
        return "part" if later["part"] in asked else "each"
    return "whole"


def _start(statement: Statement, count: Count, kinds: set[str]) -> int:
    """Returns where the words of these kinds that lead to the count begin."""
    place = count.first
    while place > 0 and count.first - place < 16:
        token = statement.tokens[place - 1]
        if token.kind not in kinds and not ("(" in kinds and token.text == "("):
            break
        place -= 1
    return statement.tokens[place].start


def _sentence(text: str, end: int) -> str:
    """Returns the sentence up to `end`, at most a window of it."""
    return re.split(r"[.!?;。\n](?= ?[^ ])", text[max(0, end - _WINDOW) : end])[-1]
