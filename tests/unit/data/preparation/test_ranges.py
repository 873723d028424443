import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lwz.data.preparation.ranges import RangeRules, TokenBudget
from megatron_lwz.data.text.length_request import find_length_request


def bounds(settled):
    return settled.range and (settled.range.lower, settled.range.upper)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2000 words", (1800, 2200)),
        ("no more than 2000 words", (1800, 2000)),
        ("at least 2000 words", (2000, 2200)),
        ("between 800 and 1000 words", (800, 1000)),
        ("about 500 words", (400, 600)),
        ("about 340 words", (300, 400)),
        ("no more than 250 words", (220, 250)),
        ("at least 250 words", (250, 280)),
        ("between 220 and 280 words", (200, 300)),
        ("between 850 and 900 words", (800, 900)),
        ("between 800 and 850 words", (800, 900)),
        ("at least 810 words and at most 990", (800, 1000)),
        ("at least 810 words and at most 1090", (900, 1000)),
        ("1500 words, at most 1790", (1300, 1700)),
        ("1500 words, at least 1210", (1300, 1700)),
        ("at most 80 words", (70, 80)),
        ("80 to 120 words", (80, 120)),
        ("100字左右", (90, 110)),
        ("about 60 words", (50, 70)),
        ("about 11,500 words", (10300, 12000)),
        ("12000 words", (10800, 12000)),
        ("at least 13000 words", None),
        ("at most 13000 words", None),
        ("between 10000 and 15000 words", None),
        ("一万五千字", None),
    ],
)
def test_requests_as_the_paper_rounds_them(text, expected):
    settled = RangeRules().settle_request(find_length_request(text))
    assert bounds(settled) == expected
    assert (settled.trouble is None) == (expected is not None)


def test_what_a_judge_may_say():
    rules = RangeRules()
    assert bounds(rules.settle(1000, 2000)) == (1000, 2000) and not rules.settle(1000, 2000).rounded
    assert bounds(rules.settle(950, 1010)) == (900, 1100) and rules.settle(950, 1010).rounded
    for lower, upper, part in [
        (0, 0, "[0, 0]"),
        (-100, 200, "below 0"),
        (300, 200, "wrong order"),
        (12100, 13000, "largest"),
    ]:
        settled = rules.settle(lower, upper)
        assert settled.range is None and part in settled.trouble


def test_the_papers_own_example_breaks_the_width_rule_and_is_kept_with_a_warning():
    assert bounds(RangeRules().settle(6000, 10000)) == (6000, 10000) and RangeRules().settle(6000, 10000).wide
    assert bounds(RangeRules(wide="narrow").settle(6000, 10000)) == (6000, 9000)
    assert RangeRules(wide="drop").settle(6000, 10000).trouble == "wider than allowed"
    assert not RangeRules().settle(6000, 9000).wide


@given(
    st.integers(-500, 20_000), st.integers(-500, 20_000), st.booleans(), st.booleans(), st.sampled_from([1, 50, 100])
)
def test_a_settled_range_obeys_every_rule(lower, upper, firm_lower, firm_upper, step):
    rules = RangeRules(step=step, wide="narrow")
    settled = rules.settle(lower, upper, firm=(firm_lower, firm_upper))
    assert (settled.range is None) == (settled.trouble is not None)
    if settled.range is not None:
        down, up = bounds(settled)
        assert any(down % used == up % used == 0 for used in (step, step // 10 or 1, 1))
        assert 0 <= down <= up <= 12_000 and up > 0 and up - down <= 3_000
        assert abs(down - lower) < 2 * step or (step == 1 and down == lower)
        assert abs(down - lower) <= max(lower / 4, 1), "a small bound is rounded by a smaller step"


def test_the_token_budget():
    budget = TokenBudget(new_tokens=14_000, thinking=2_500, per_word=1.35, per_character=0.8)
    assert budget.fits(8_500, "words") and not budget.fits(8_600, "words")
    assert budget.fits(12_000, "characters")
    assert not TokenBudget(new_tokens=2_000).fits(0, "words"), "no room beside the thinking at all"
