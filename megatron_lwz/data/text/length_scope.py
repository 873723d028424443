"""Tells from the words around a count what it measures: the text to write, a part of it, or an existing text."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from megatron_lwz.data.text import length_patterns as patterns
from megatron_lwz.data.text.length_bounds import AFTER, BEFORE, EITHER, LIGHT
from megatron_lwz.data.text.length_tokens import Count, Statement

Scope = Literal["total", "whole", "part", "each", "other"]
"""total and whole: the text to write (for "total", the request says so); part: a part, which is all that is asked for;
each: one of several parts or texts; other: an existing text, or words that are no text."""

_WINDOW = 70
_WIDE_WINDOW = 160  # reaches the verb of a request: "write a story about … that is at least 1500 words"
OUTLINE = "outline"
_LIST = {"unit", "adj", "about", "joint", "and", "or"}
_LEAD = LIGHT | BEFORE | EITHER | {"not", "instead", "("}


def find_asked_parts(text: str) -> frozenset[str]:
    """Returns the names of the parts that the request asks for as such: "write the introduction of my thesis"."""
    parts = {match["part"] or match["head"] or match["han"] for match in patterns.PART_ASKED.finditer(text)}
    return frozenset(parts | {OUTLINE for _ in patterns.OUTLINE_ASKED.finditer(text)})


def find_scopes(statement: Statement, asked: Set[str]) -> list[Scope]:
    """Returns what each count of a statement measures. `asked`: the result of `find_asked_parts`."""
    scopes: list[Scope] = []
    for place, count in enumerate(statement.counts):
        scopes.append(_scope(_context(statement, count), count, asked))
        if place:
            scopes[-2:] = _agree(statement, statement.counts[place - 1], count, scopes[-2], scopes[-1])
    return scopes


def _agree(statement: Statement, last: Count, count: Count, first: Scope, second: Scope) -> list[Scope]:
    """Returns the scopes of two neighbours, where a bound that says nothing of its own takes that of the other.

    "Each section at least 300 words, at most 500 words": both are of a section.
    """
    between = statement.kinds(last.last + 1, count.first)
    if {first, second} == {"each", "whole"} and between & {"and", "or"} and between <= _LIST and not count.bound:
        return ["each", "each"]  # "two stories, 1000 words and 2000 words"
    one_sentence, opposite = "stop" not in between, last.bound and last.lower != count.lower
    if "whole" in between or not count.bound or {first, second} & {"whole"} == set():
        return [first, second]
    if opposite and {first, second} <= {"whole", "total", "part", "each"}:
        return [second, second] if first == "whole" else [first, first]
    if first in ("part", "each") and not last.bound and one_sentence:
        return [first, first]
    in_order = last.low <= count.low if last.lower else count.low <= last.low
    return [first, first] if first == "other" and opposite and in_order and one_sentence else [first, second]


@dataclass(frozen=True)
class _Context:
    """The text of the sentence before a count and after it, at most a window of it.

    left: up to the number. unbound: up to its bound, "my essay has" of "my essay has over". plain: up to the words of no
    weight. before: up to all words that lead to the number, also verbs and prepositions. right: from behind the unit.
    beyond: from behind the bounds after the unit. wide: `unbound` with more before it, also of other sentences.
    """

    left: str
    unbound: str
    plain: str
    before: str
    right: str
    beyond: str
    wide: str


def _context(statement: Statement, count: Count) -> _Context:
    tokens, text = statement.tokens, statement.text
    start = tokens[count.first].start
    leads = ({"about", "not", "adj", "between"} | BEFORE | EITHER, _LEAD - {"verb", "prep", "joint"}, _LEAD)
    ends = [tokens[statement.skip(count.first - 1, kinds, -1) + 1].start for kinds in leads]
    sentence = _sentence(text[max(0, start - _WINDOW) : start])
    left, unbound, plain, before = (sentence[: max(0, len(sentence) - (start - end))] for end in (start, *ends))
    behind_unit = statement.skip(count.last + 1, {"unit", "adj", "joint"})
    behind_bound = statement.skip(behind_unit, {"unit", "about", "tolerance", "percent"} | AFTER | EITHER)
    right, beyond = (
        text[tokens[place - 1].end : tokens[place - 1].end + _WINDOW] for place in (behind_unit, behind_bound)
    )
    wide = text[max(0, start - _WIDE_WINDOW) : start - (len(left) - len(unbound))]
    return _Context(left, unbound, plain, before, right, beyond, wide)


def _sentence(text: str) -> str:
    return re.split(r"[.!?;。\n](?= ?[^ ])", text)[-1]


def _scope(context: _Context, count: Count, asked: Set[str]) -> Scope:
    left, right = context.left, context.right
    if _is_other(context, count) or (OUTLINE in asked and patterns.OUTLINED.search(left)):
        return "other"
    if patterns.PER_PART_AFTER.match(right) or patterns.PER_PART_AFTER.match(context.beyond):
        return "each"
    if patterns.MANY_AFTER.match(right) and not patterns.ARTICLE_BEFORE.search(left):
        return "each"
    total = patterns.TOTAL_BEFORE.search(left)
    each = patterns.PER_PART_BEFORE.search(context.before) or patterns.MANY_OF_BEFORE.search(left)
    if patterns.TOTAL_AFTER.match(right) or patterns.TOTAL_AFTER.match(context.beyond):
        return "total"
    if total is not None and (each is None or each.start() < total.start()):
        return "total"
    if each is not None:
        return "each"
    if patterns.PART_AFTER.match(right):
        return "part"
    named = patterns.PART_BEFORE.search(left) or patterns.PART_BEFORE.search(context.plain)
    if named is not None:
        return "part" if (named["part"] or named["han"]) in asked else "each"
    later = patterns.PART_LATER.match(right) or patterns.PART_LATER.match(context.beyond)
    if later is not None:
        return "part" if later["part"] in asked else "each"
    return "whole"


def _is_other(context: _Context, count: Count) -> bool:
    left, right, unbound = context.left, context.right, context.unbound
    if count.own_unit and (patterns.NOT_A_LENGTH_AFTER.match(right) or patterns.NO_TEXT_AFTER.match(right)):
        return True
    befores = dict.fromkeys((unbound, left))
    if any(patterns.ABOUT_A_TEXT.search(words) for words in befores):
        return True
    quoted = any(mark in left for mark in '"“《') and patterns.QUOTED_BEFORE.search(left) is not None
    if quoted and patterns.QUOTED_AFTER.match(right):
        return True
    given = any(patterns.STATED_OF_GIVEN.search(words) for words in befores)
    if given and patterns.ASKED_THAT.search(_sentence(context.wide)) is None:
        return patterns.REQUESTED.search(unbound) is None
    if patterns.OWNED.search(unbound) and not (count.bound and count.upper):
        return True
    if count.lower or count.upper:
        return False
    if any(patterns.GIVEN_BEFORE.search(words) for words in dict.fromkeys((left, unbound, context.plain))):
        return True
    return not count.pair and patterns.OUT_OF.search(context.plain) is not None
