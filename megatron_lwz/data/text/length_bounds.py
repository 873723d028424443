"""Finds the bounds that a statement states: "at least", "no more than", "or more", "max", "以上", "不超过"."""

from __future__ import annotations

from itertools import pairwise, zip_longest

from megatron_lwz.data.text import length_patterns as patterns
from megatron_lwz.data.text.length_tokens import REACH, Count, Statement

BEFORE = frozenset({"least_before", "most_before", "more", "less"})
AFTER = frozenset({"least_after", "most_after"})
EITHER = frozenset({"least", "most"})
"""Kinds of bounds by where they stand: before their number, after it, or on either side ("max")."""
FILLERS = frozenset({"fill", "prep", "verb", "fixed", "about", "adj"})
LIGHT = FILLERS | {"label", "joint", "between"}
"""Kinds of tokens that may stand between a bound and its number: "a maximum word count of about 800"."""
BREAKS = frozenset({"sep", "stop", "and", "or", "joint"})
_REACHES_RIGHT = LIGHT | BEFORE | EITHER | {"not", "sep", "total", "whole"}
_REACHES_LEFT = AFTER | {"unit", "adj", "about", "label", "fill", "prep", "sep", "whole", "total"}


def attach_bounds(statement: Statement, counts: list[Count]) -> list[Count]:
    """Sets `lower` and `upper` of the counts. Returns them without those that are denied: "not 800 words"."""
    counts = _leave_out_sources(statement, _leave_out_denied(statement, counts))
    ends = [None, *counts, None]
    for left, right in pairwise(ends):
        start = left.last + 1 if left is not None else 0
        stop = right.first if right is not None else len(statement.tokens)
        far = stop - start > 2 * REACH
        places = [*range(start, start + REACH), *range(stop - REACH, stop)] if far else range(start, stop)
        for place in places:
            if statement.kind(place) in BEFORE | AFTER | EITHER:
                _attach(statement, place, left, right)
    for count, following in zip_longest(counts, counts[1:]):
        if count.bound and _opener(statement, count) and not (following is not None and following.upper):
            statement.doubtful = True  # "between 800 and …": the second number was not found
        _turn_consequence(statement, count)
    return counts


def _leave_out_denied(statement: Statement, counts: list[Count]) -> list[Count]:
    """Leaves out the numbers after "not" and "instead of": "1500 words, not 800 words"."""
    denied = {
        statement.skip(place + 1, FILLERS | {"label"})
        for place, token in enumerate(statement.tokens)
        if token.kind in ("not", "instead")
    }
    return [count for count in counts if count.first not in denied]


def _leave_out_sources(statement: Statement, counts: list[Count]) -> list[Count]:
    """Leaves out what a text had: "from 500 words … to 1000". A single number after "between" is a minimum."""
    kept: list[Count] = []
    for count, following in zip_longest(counts, counts[1:]):
        opener = _opener(statement, count)
        if opener == "from":
            bounded = following and statement.kinds(count.last + 1, following.first) & (BEFORE | EITHER)
            if following is not None and not bounded:
                continue
            opener = "between" if bounded else ""
        count.lower = bool(opener)
        kept.append(count)
    return kept


def _opener(statement: Statement, count: Count) -> str:
    """Returns the "between" or "from" before a single number, or ""."""
    place = statement.skip(count.first - 1, {"about", "fill", "prep"}, -1)
    single = not count.pair and count.low >= patterns.SMALLEST and statement.kind(place) == "between"
    return statement.tokens[place].text if single else ""


def _attach(statement: Statement, place: int, left: Count | None, right: Count | None) -> None:
    token, negated = statement.tokens[place], _is_negated(statement, place)
    if negated and token.kind in EITHER:  # "no maximum"
        return
    if negated and token.kind in ("least_before", "most_before"):  # "not limited to"
        statement.doubtful = True
        return
    comparison = token.text[0] in "<>≤≥" and statement.kind(place + 1) in ("unit", "label")
    turned = comparison and statement.kind(place - 1) == "number"  # "800 < words < 1000"
    count = left if turned else _owner(statement, place, left, right)
    if count is None:
        return
    least = token.kind in {"more", "least", "least_before", "least_after"}
    if turned or (negated and token.kind in ("more", "less")):
        least = not least
    if (count.upper if least else count.lower) and not count.pair:
        statement.doubtful = True
    count.lower |= least
    count.upper |= not least


def _is_negated(statement: Statement, place: int) -> bool:
    """Returns whether "not" applies to the comparison at `place`, also in "not less than 800 or more than 1000"."""
    before = statement.skip(place - 1, FILLERS | {"label", "joint"}, -1)
    if statement.kind(before) == "not":
        return True
    if statement.kind(before) != "or" or statement.kind(place) not in ("more", "less"):
        return False
    nearby = range(before - 1, max(before - 1 - REACH, -1), -1)
    earlier = next((i for i in nearby if statement.kind(i) in ("more", "less")), None)
    return (
        earlier is not None
        and statement.kind(earlier) != statement.kind(place)
        and statement.kind(statement.skip(earlier - 1, FILLERS | {"label", "joint"}, -1)) == "not"
    )


def _owner(statement: Statement, place: int, left: Count | None, right: Count | None) -> Count | None:
    """Returns the count that the bound at `place` is of: the last one or the next one. None: neither."""
    token = statement.tokens[place]
    before = statement.kinds(left.last + 1, place) if left is not None else set[str]()
    after = statement.kinds(place + 1, right.first) if right is not None else set[str]()
    to_left = left if before <= _REACHES_LEFT else None
    to_right = right if after <= _REACHES_RIGHT else None
    if token.kind in BEFORE:
        return to_right
    if token.kind in AFTER:
        return to_left if to_left is not None and _directly_after(statement, to_left, place) else None
    if left is None:
        return to_right
    bracketed = statement.text[token.start - 1 : token.start] + statement.text[token.end : token.end + 1]
    if bracketed == "()":  # "800 (min) - 1000 (max)"
        return left
    if right is None:
        ends = statement.kind(place + 1) in {"", *BREAKS} and not statement.continues(place)
        return to_left if ends or (token.text.isascii() and "sep" not in before) else None
    apart_left, apart_right = bool(before & BREAKS), bool(after & BREAKS)
    if apart_left != apart_right:
        return right if apart_left else left
    if not token.text.isascii() or left.lower or left.upper:  # 至少 and its like rarely follow their number
        return to_right
    return to_left or to_right


def _directly_after(statement: Statement, count: Count, place: int) -> bool:
    """Returns whether nothing but a bracket, or in English a comma, is between a count and "or more"."""
    allowed = "(," if statement.tokens[place].text.isascii() else "("
    between = statement.tokens[count.last + 1 : place]
    return all(token.text in allowed for token in between if token.kind == "sep")


def _turn_consequence(statement: Statement, count: Count) -> None:
    """Reads "over 1000 words will be rejected" as a maximum."""
    end = statement.tokens[statement.skip(count.last + 1, AFTER | {"unit", "adj", "label"}) - 1].end
    if count.bound and patterns.CONSEQUENCE_AFTER.match(statement.text[end : end + 60]):
        count.lower, count.upper = count.upper, count.lower
