"""Reads a statement: which of its numbers are lengths, in which unit, and which bounds they state."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_lwz.data.text import length_patterns as patterns
from megatron_lwz.data.text.length import Unit
from megatron_lwz.data.text.length_tokens import LIST_COMMA, Token

SMALLEST = 50
"""Smallest count that is taken as a length. Smaller ones are of titles, slogans and word lists rather than of texts."""
LARGEST = 1_000_000
REACH = 16
"""Largest number of tokens between words that belong together. It bounds the work on each word."""

BEFORE = {"least_before", "most_before", "more", "less"}
AFTER = {"least_after", "most_after"}
EITHER = {"least", "most"}
LIGHT = {"fill", "prep", "verb", "fixed", "about", "adj", "label", "joint", "between"}
"""Kinds of tokens that may stand between a bound and its number: "a maximum word count of about 800"."""
_BREAKS = {"sep", "stop", "and", "or", "joint"}


@dataclass
class Count:
    """A number, or a pair of numbers, at the tokens first..last of a statement. `lower` and `upper` say what it bounds."""

    first: int
    last: int
    low: float
    high: float
    lower: bool = False
    upper: bool = False
    unit: Unit | None = None
    own_unit: bool = False
    """Whether the unit is the count's own. Else it is that of another count of the statement."""

    @property
    def pair(self) -> bool:
        """Whether the count is a range: two numbers, or one with a tolerance."""
        return self.low < self.high

    @property
    def bound(self) -> bool:
        """Whether the count is a minimum or a maximum alone."""
        return not self.pair and (self.lower or self.upper)


@dataclass
class Statement:
    """Tokens of `text` that follow each other, and the counts in them."""

    tokens: list[Token]
    text: str
    counts: list[Count] = field(default_factory=list)
    loose: list[Count] = field(default_factory=list)
    """Bounds without a unit: perhaps the other half of a range, perhaps of something else."""
    doubtful: bool = False
    """Whether something in the statement about its counts was not understood."""

    def kind(self, place: int) -> str:
        """Returns the kind of a token, or "" beyond the ends."""
        return self.tokens[place].kind if 0 <= place < len(self.tokens) else ""

    def skip(self, place: int, kinds: set[str], step: int = 1) -> int:
        """Returns the first place from `place` on, in steps of `step`, whose kind is not in `kinds`, at most REACH on."""
        for _ in range(REACH):
            if self.kind(place) not in kinds:
                break
            place += step
        return place

    def kinds(self, start: int, stop: int) -> set[str]:
        """Returns the kinds of the tokens start..stop - 1."""
        return {token.kind for token in self.tokens[start:stop]}


def read_statement(tokens: list[Token], text: str) -> Statement:
    """Returns the counts of lengths in a statement. They may still be lengths of parts or of given texts."""
    statement = Statement(tokens, text)
    statement.doubtful = any(_is_ambiguous(token, text) for token in tokens if token.kind == "number")
    counts = _join_pairs(statement)
    counts = _apply_tolerances(statement, counts)
    counts = _leave_out_denied(statement, counts)
    counts = _open_ranges(statement, counts)
    _attach_bounds(statement, counts)
    _close_ranges(statement, counts)
    _give_units(statement, counts)
    partner = {flag for count in counts if count.unit and count.high >= SMALLEST for flag in _sides(count)}
    for count in counts:
        smallest = SMALLEST if not (count.lower and "upper" in partner and not count.upper) else 1
        if count.unit is not None and smallest <= count.low and count.high <= LARGEST:
            statement.counts.append(count)
    return statement


def _is_ambiguous(token: Token, text: str) -> bool:
    """Returns whether a number may be two: "chapter 3 500 words", or item 2 of a list, "2.800字"."""
    before = text[max(0, token.start - 12) : token.start]
    if " " in token.text and token.text[0].isdigit() and patterns.DESIGNATION.search(before):
        return True
    if patterns.POINTS.fullmatch(token.text) and (before.endswith("\n") or text[token.end : token.end + 3].strip(" 个余多")[:1] == "字"):
        return True
    return before.endswith(LIST_COMMA)


def _sides(count: Count) -> set[str]:
    return {name for name, stated in (("lower", count.lower), ("upper", count.upper)) if stated}


def _join_pairs(statement: Statement) -> list[Count]:
    """Makes counts of the numbers: one of "800-1000 words", and one of "500 (five hundred) words"."""
    tokens, counts = statement.tokens, list[Count]()
    for place, token in enumerate(tokens):
        if token.kind != "number":
            continue
        count = Count(place, place, token.low, token.high)
        last = counts[-1] if counts else None
        joined = _join(statement, last, count) if last is not None else None
        if last is not None and joined is not None:
            changed = patterns.CHANGED_FROM.search(statement.text[max(0, tokens[last.first].start - 70) : tokens[last.first].start])
            counts[-1] = count if changed else joined
        else:
            counts.append(count)
    return counts


def _join(statement: Statement, last: Count, count: Count) -> Count | None:
    tokens, place = statement.tokens, count.first
    inner = tokens[last.last + 1 : place]
    if [token.text for token in inner] == ["("] and statement.kind(place + 1) == "sep" and last.low == count.low:
        return Count(last.first, place + 1, last.low, last.high)
    links = [token.kind for token in inner if token.kind in ("joint", "or", "and")]
    if not links or last.pair or not {token.kind for token in inner} <= {"joint", "or", "and", "unit", "about", "adj"}:
        return None
    if "and" in links and not _between(statement, last, count):
        return None
    low, high = last.low, count.high
    scale = tokens[place].scale
    if low < 100 <= high and scale > 1 and low * scale <= high:  # "2-3k", "八到九千"
        low *= scale
    if "or" in links and (len(links) > 1 or low < SMALLEST):
        return None
    units = {_unit(token) for token in (*inner, *tokens[place + 1 : place + 3]) if token.kind == "unit"}
    return Count(last.first, place, low, high) if low < high and len(units) < 2 else None


def _between(statement: Statement, last: Count, count: Count) -> bool:
    """Returns whether "800 and 1000" is a range: after "between", or before 之间."""
    before = statement.skip(last.first - 1, {"about", "fill", "prep"}, -1)
    return statement.kind(before) == "between" or bool(
        patterns.SPAN_AFTER.match(statement.text, statement.tokens[count.last].end)
    )


def _apply_tolerances(statement: Statement, counts: list[Count]) -> list[Count]:
    """Widens the count before "± 10 %" or "give or take 200 words", or after "within 10 % of"."""
    kept: list[Count] = []
    waiting: float | None = None
    for count in counts:
        percent = "percent" in (statement.kind(count.last + 1), statement.kind(count.first - 1))
        if _is_tolerance(statement, count, percent):
            share = count.low / 100 if percent else None
            if kept:
                statement.doubtful |= not _widen(kept[-1], share, count.low)
            else:
                waiting = share
        elif percent and kept and _unit_after(statement, kept[-1]):
            after = statement.tokens[count.last + 1].end if statement.kind(count.last + 1) == "percent" else 0
            statement.doubtful |= not statement.text[after : after + 2].strip(" ,的").isalpha()
        elif not percent:
            if waiting is not None:
                _widen(count, waiting, 0.0)
                waiting = None
            kept.append(count)
    return kept


def _is_tolerance(statement: Statement, count: Count, percent: bool) -> bool:
    before = statement.skip(count.first - 1, {"fill", "prep", "verb", "fixed", "not", "more", "less", "most_before", "most", "percent"}, -1)
    if statement.kind(before) == "tolerance":
        return True
    after = statement.skip(count.last + 2, {"fill", "fixed", "adj", "more", "not"})
    return percent and (
        statement.kind(after) == "tolerance"
        or statement.tokens[count.first - 1].text in ("within", "上下", "左右")
        and count.first > 0
    )


def _widen(count: Count, share: float | None, width: float) -> bool:
    """Turns a count into a range around it. Returns False if the tolerance is as large as the count."""
    if share is not None:
        count.low, count.high, fits = count.low * (1 - share), count.high * (1 + share), 0 < share < 1
    else:
        count.low, count.high, fits = count.low - width, count.high + width, 0 < width < count.low
    return fits


def _leave_out_denied(statement: Statement, counts: list[Count]) -> list[Count]:
    """Leaves out the numbers after "not" and "instead of": "1500 words, not 800 words"."""
    denied = {
        statement.skip(place + 1, {"fill", "prep", "verb", "fixed", "about", "adj", "label"})
        for place, token in enumerate(statement.tokens)
        if token.kind in ("not", "instead")
    }
    return [count for count in counts if count.first not in denied]


def _attach_bounds(statement: Statement, counts: list[Count]) -> None:
    """Gives each bound to its number: the next one ("at most 800"), the last one ("800 or more"), or either ("max")."""
    ends = [None, *counts, None]
    for left, right in zip(ends, ends[1:], strict=False):
        start = left.last + 1 if left is not None else 0
        stop = right.first if right is not None else len(statement.tokens)
        places = range(start, stop)
        if len(places) > 2 * REACH:
            places = [*places[:REACH], *places[-REACH:]]
        for place in places:
            if statement.kind(place) in BEFORE | AFTER | EITHER:
                _attach(statement, place, left, right)


def _attach(statement: Statement, place: int, left: Count | None, right: Count | None) -> None:
    kind, negated = statement.kind(place), _is_negated(statement, place)
    side = None if negated and kind in EITHER else _side(statement, place, left, right)  # "no maximum" bounds nothing
    if side is None:
        return
    least = kind.startswith("least") or kind == ("less" if negated else "more")
    if (side.upper if least else side.lower) and not side.pair:
        statement.doubtful = True
    side.lower |= least
    side.upper |= not least


def _side(statement: Statement, place: int, left: Count | None, right: Count | None) -> Count | None:
    """Returns the count that the bound at `place` is about, None if it is about neither."""
    token = statement.tokens[place]
    near = LIGHT | BEFORE | EITHER | {"not", "sep", "total"}
    reaches_right = right is not None and statement.kinds(place + 1, right.first) <= near | {"whole"}
    after = statement.kinds(left.last + 1, place) if left is not None else set()
    reaches_left = left is not None and after <= {"unit", "adj", "about", "label", "fill", "prep", "sep", "whole", "total", *AFTER}
    if token.kind in BEFORE:
        return right if reaches_right else None
    if token.kind in AFTER:
        separate = left is not None and any(
            part.kind == "sep" and part.text != "(" and not (part.text == "," and token.text.isascii())
            for part in statement.tokens[left.last + 1 : place]
        )
        return left if reaches_left and not separate else None
    if left is None or right is None:
        if left is None:
            return right if reaches_right else None
        closed = statement.kind(place + 1) in {"", *_BREAKS} and not _continues(statement, place)
        return left if reaches_left and (closed or (token.text.isascii() and "sep" not in after)) else None
    if statement.tokens[place - 1].text == "(" and statement.text[token.end : token.end + 1] == ")":  # "800 (min) - 1000 (max)"
        return left
    apart_left = bool(after & _BREAKS)
    apart_right = bool(statement.kinds(place + 1, right.first) & _BREAKS)
    if apart_left != apart_right:
        return right if apart_left else left
    if not token.text.isascii() or left.lower or left.upper:
        return right if reaches_right else None
    return left if reaches_left else right if reaches_right else None


def _is_negated(statement: Statement, place: int) -> bool:
    """Returns whether "not" applies to the comparison at `place`, also as in "not less than 800 or more than 1000"."""
    before = statement.skip(place - 1, {"fill", "prep", "verb", "fixed", "about", "adj", "label", "joint"}, -1)
    if statement.kind(before) == "not":
        return True
    if statement.kind(before) != "or" or statement.kind(place) not in ("more", "less"):
        return False
    nearby = range(before - 1, max(before - 1 - REACH, -1), -1)
    earlier = next((i for i in nearby if statement.kind(i) in ("more", "less")), None)
    return earlier is not None and statement.kind(earlier) != statement.kind(place) and _is_negated(statement, earlier)


def _open_ranges(statement: Statement, counts: list[Count]) -> list[Count]:
    """Reads "between" before a single number as a minimum, and leaves out what a text had: "from 500 … to 1000"."""
    kept: list[Count] = []
    for place, count in enumerate(counts):
        before = statement.skip(count.first - 1, {"about", "fill", "prep"}, -1)
        opened = not count.pair and statement.kind(before) == "between"
        if opened and statement.tokens[before].text == "from" and place + 1 < len(counts):
            after = statement.kinds(count.last + 1, counts[place + 1].first)
            if not after & (BEFORE | EITHER):
                continue
        elif opened and statement.tokens[before].text == "from":
            opened = False
        count.lower = opened
        kept.append(count)
    return kept


def _close_ranges(statement: Statement, counts: list[Count]) -> None:
    """Doubts a "between 800" that no maximum follows."""
    for place, count in enumerate(counts):
        before = statement.skip(count.first - 1, {"about", "fill", "prep"}, -1)
        if count.bound and statement.kind(before) == "between":
            statement.doubtful |= not any(later.upper for later in counts[place + 1 : place + 2])


def _give_units(statement: Statement, counts: list[Count]) -> None:
    for count in counts:
        count.unit = _unit_after(statement, count) or _unit_of_label(statement, count)
        count.own_unit = count.unit is not None
    owners = [count for count in counts if count.own_unit]
    for count in counts:
        if not count.own_unit and _is_of_something_else(statement, count):
            end = statement.tokens[count.last].end
            if count.bound and patterns.OF_PAGES.match(statement.text, end):  # "at least 800 words and at most 5 pages"
                statement.doubtful |= any(owner.bound and owner.lower != count.lower for owner in owners)
            continue
        if count.own_unit:
            continue
        if owners and _shares_unit(statement, count):
            earlier = [owner for owner in owners if owner.first < count.first]
            count.unit = (earlier[-1] if earlier else owners[0]).unit
        elif count.bound and count.low >= SMALLEST and not _is_topic(statement, count):
            statement.loose.append(count)


def _unit_after(statement: Statement, count: Count) -> Unit | None:
    for token in statement.tokens[count.first : count.last]:
        if token.kind == "unit":
            return _unit(token)
    place = count.last + 1
    while statement.kind(place) in {"adj", "about", "joint", "tolerance", "percent", *AFTER, *EITHER} or (
        statement.kind(place) == "sep" and statement.tokens[place].text in "()"
    ):
        place += 1
    return _unit(statement.tokens[place]) if statement.kind(place) in ("unit", "label") else None


def _unit_of_label(statement: Statement, count: Count) -> Unit | None:
    """Returns the unit of a label such as "word count:" before the count."""
    if _is_of_something_else(statement, count):
        return None
    place = count.first - 1
    while statement.kind(place) in (LIGHT - {"label"}) | BEFORE | EITHER | {"not", "total"} or (
        statement.kind(place) == "sep" and statement.tokens[place].text in "()"
    ):
        place -= 1
    labels = statement.kind(place) == "label" and statement.kind(place - 1) != "number"  # not "in 500 words: 2019 was …"
    return _unit(statement.tokens[place]) if labels else None


def _unit(token: Token) -> Unit:
    return "words" if token.text.startswith(("word", "wd", "number", "length", "英", "单", "词")) else "characters"


def _is_of_something_else(statement: Statement, count: Count) -> bool:
    """Returns whether a number without a unit counts something else: "3 topics", "5段", "1000 people"."""
    place = count.last + 1
    while statement.kind(place) == "adj" or (statement.kind(place) == "joint" and statement.tokens[place].text == "-"):
        place += 1
    if statement.kind(place):
        return statement.kind(place) in ("part", "whole", "percent", "number")
    return _continues(statement, place - 1)


def _continues(statement: Statement, place: int) -> bool:
    """Returns whether a word of another kind follows the token at `place`."""
    end = statement.tokens[place].end
    return not statement.kind(place + 1) and statement.text[end : end + 2].lstrip(" ")[:1].isalpha()


def _shares_unit(statement: Statement, count: Count) -> bool:
    """Returns whether a number without a unit, beside a length, is one too: a bound, a range, a total, "ideally 800"."""
    tokens, before = statement.tokens, statement.skip(count.first - 1, {"fill"}, -1)
    if count.high < SMALLEST or _is_topic(statement, count):
        return False
    if count.pair:
        return not all(
            patterns.YEAR.fullmatch(token.text) for token in tokens[count.first : count.last + 1] if token.kind == "number"
        )
    return count.bound or "total" in (statement.kind(count.last + 1), statement.kind(before)) or statement.kind(before) == "about"


def _is_topic(statement: Statement, count: Count) -> bool:
    """Returns whether a preposition only names a subject or a place: "2000 words about 1848", "words over 3 pages"."""
    before = statement.tokens[count.first - 1] if count.first else None
    if before is None or not patterns.TOPIC.fullmatch(before.text):
        return False
    return statement.kind(count.first - 2) == "unit" or bool(
        count.first == 1 and patterns.YEAR.fullmatch(statement.tokens[count.first].text)
    )
