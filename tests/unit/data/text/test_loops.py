"""The detector of endless loops says exactly what its rule says, on every text and for every cut."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.data.text.loops import LoopFinder, loop_unit


def by_definition(text: str, *, characters: int, repeats: int, unit: int) -> int:
    for period in range(1, unit + 1):
        needed = max(characters, repeats * period)
        end = text[-needed:]
        if len(text) >= needed and all(a == b for a, b in zip(end, end[period:], strict=False)):
            return period
    return 0


rules = st.fixed_dictionaries(
    {"characters": st.integers(1, 40), "repeats": st.integers(3, 5), "unit": st.integers(1, 30)}
)
nested = st.recursive(
    st.text("ab", max_size=4),
    lambda inner: st.one_of(st.tuples(inner, inner).map("".join), st.tuples(inner, st.integers(2, 6)).map(lambda p: p[0] * p[1])),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=400)
@given(nested, rules)
def test_the_fast_search_agrees_with_the_definition(text, rule):
    assert loop_unit(text[-300:], **rule) == by_definition(text[-300:], **rule)


@settings(max_examples=100)
@given(nested, rules, st.integers(1, 7))
def test_where_the_text_is_cut_makes_no_difference(text, rule, size):
    text = text[:400]
    finder = LoopFinder(**rule)
    for start in range(0, len(text), size):
        assert finder.feed(text[start : start + size]) == loop_unit(text[: start + size], **rule)


def test_a_loop_of_any_unit_is_found_where_the_rule_says():
    noise = random.Random(0)
    for length in (1, 7, 80, 500, 2000):
        unit = "".join(noise.choices("abcdefgh 中文字。\n", k=length))
        before = "".join(noise.choices("uvwxyz", k=5000))
        finder = LoopFinder(characters=2000, repeats=5, unit=2000)
        assert finder.feed(before) == 0
        needed = max(2000, 5 * length)
        looped = unit * (needed // length + 2)
        assert finder.feed(looped[: needed - 1]) == 0
        assert finder.feed(looped[needed - 1 : needed]) == length


def test_a_hostile_text_costs_no_more_than_a_few_searches():
    text = ("a" * 300 + "b" * 900 + "a" * 299 + "b") * 20 + "a" * 200
    assert loop_unit(text, characters=2000, repeats=5, unit=2000) == by_definition(text, characters=2000, repeats=5, unit=2000)  # fmt: skip
