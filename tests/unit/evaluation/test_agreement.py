"""What the figures of a component say of it, on planted causes; intervals of shares that hold the truth."""

from __future__ import annotations

import random

import numpy as np
import pytest

from megatron_lwz.evaluation.agreement import FEWEST, Choice, agreement
from megatron_lwz.evaluation.preference_report import concord, people
from megatron_lwz.evaluation.statistics import share


def choices(count, *, score, ratios=(1.0, 1.05, 0.6, 1.6, 2.5), seed=0, longer=0.5):
    """Choices of which one component scores `score(rng, ratio)` = (preferred, other)."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        ratio = rng.choice(ratios)
        if ratio > 1.1 and rng.random() > longer:
            ratio = 1 / ratio
        found.append(Choice(str(number), str(number // 2), ratio, {"genre": ("a",)}, {"it": score(rng, ratio)}))
    return found


def right(rng, _):
    return (1.0, 0.0) if rng.random() < 0.8 else (0.0, 1.0)


def wrong(rng, ratio):
    return right(rng, ratio)[::-1]


def chance(rng, _):
    return rng.random(), rng.random()


def longer(rng, ratio):
    return (ratio, 1.0) if ratio > 1.1 or ratio < 0.9 else chance(rng, ratio)


def shorter(rng, ratio):
    return longer(rng, ratio)[::-1]


@pytest.mark.parametrize(
    ("score", "standing", "said"),
    [
        (right, "earns", "earns its weight"),
        (wrong, "against", "people do not"),
        (chance, "chance", "no better than chance"),
        (longer, "length", "prefers the longer text"),
        (shorter, "length", "prefers the shorter text"),
        (lambda *_: (1.0, 1.0), "equal", "same score"),
        (lambda *_: None, "none", "no score (400 × no verdict)"),
    ],
)
def test_the_standing_names_the_planted_cause(score, standing, said):
    found = agreement("it", choices(400, score=score), {"no verdict": 400 * (standing == "none")}, tolerance=0.1)
    assert found.standing == standing and said in found.line
    assert found.by == {}, "one value of a category says nothing"


def test_the_little_difference_in_length_that_matched_pairs_have_helps_nobody():
    def follows(_, ratio):
        return ratio, 1.0

    near = {"ratios": (1.02, 1.05, 1.08), "longer": 0.0}  # people prefer the longer of such texts in 3 of 4
    found = choices(3000, score=follows, **near) + choices(1000, score=follows, ratios=(1 / 1.02, 1 / 1.06))
    figures = agreement("it", found, {}, tolerance=0.1)
    assert figures.accuracy.value == 0.75 and figures.bins["matched"].value == 0.75
    assert figures.matched.value == pytest.approx(0.5) and figures.standing == "chance"
    good = choices(3000, score=right, **near) + choices(1000, score=right, seed=1, ratios=(1 / 1.02,))
    assert agreement("it", good, {}, tolerance=0.1).matched.value == pytest.approx(0.8, abs=0.02)


def test_many_pairs_make_no_small_agreement_a_great_one():
    def slightly(rng, _):
        return (1.0, 0.0) if rng.random() < 0.53 else (0.0, 1.0)

    found = agreement("it", choices(20000, score=slightly, ratios=(1.0,)), {}, tolerance=0.1)
    assert found.matched.low > 0.5 and found.standing == "weak" and "hardly better" in found.line


def test_without_length_matched_pairs_nothing_is_claimed():
    found = agreement("it", choices(200, score=right, ratios=(1.6, 2.5)), {}, tolerance=0.1)
    assert found.standing == "open" and f"{FEWEST} are needed" in found.line and found.matched is None
    assert found.accuracy.low > 0.5, "the figure over all pairs is there nevertheless"
    assert agreement("it", choices(200, score=right, ratios=(1.6, 0.8)), {}, tolerance=0.7).standing == "earns"


def test_a_component_that_is_right_but_leans_to_length_is_named_so():
    def both(rng, ratio):
        return (2.0, 0.0) if ratio > 1.1 else (0.0, 2.0) if ratio < 0.9 else right(rng, ratio)

    found = agreement("it", choices(400, score=both), {}, tolerance=0.1)
    assert found.standing == "earns" and found.line.endswith("prefers the longer text more often than people do")


def test_accuracies_by_length_and_by_category():
    rows = [
        Choice("1", "a", 3.0, {"genre": ("x", "y")}, {"it": (1, 0)}),
        Choice("2", "b", 1.5, {"genre": ("x",)}, {"it": (0, 0)}),
        Choice("3", "c", 1.0, {"genre": ("x",)}, {"it": (0, 1)}, {"it": (1, 2)}),
        Choice("4", "d", 0.2, {"genre": ("y",)}, {"it": (1, 0)}, {"it": (2, 2)}),
        Choice("5", "e", 0.9, {"genre": ("y",)}, {"it": None}),
    ]
    found = agreement("it", rows, {"no verdict": 1}, tolerance=0.1)
    assert {name: value.value for name, value in found.bins.items()} == {
        "over 2 × shorter": 1, "matched": 0, "1.25 to 2 × longer": 0.5, "over 2 × longer": 1,
    }  # fmt: skip
    assert {name: value.value for name, value in found.by["genre"].items()} == {"x": 0.5, "y": 1}
    assert (found.scored, found.ties, found.orders.value, dict(found.masked)) == (4, 1, 0.75, {"no verdict": 1})
    assert (found.longer_won.value, found.shorter_won.value) == (0.75, 1)
    assert found.prefers_longer.value == pytest.approx(0.5) and found.people_longer == pytest.approx(2 / 3)
    assert people(rows, 0.1)["matched"] == 1 and people(rows, 0.12)["matched"] == 2


def test_components_that_agree():
    rows = [Choice(str(n), str(n), 1.0, {}, {"a": (1, 0), "b": (n % 2, 0.5), "c": (1, 1), "d": None}) for n in range(4)]
    found = concord(["a", "b", "c", "d"], rows)
    assert found["a"] == {"b": 0.5, "c": 0.5} and found["d"] == {}


@pytest.mark.parametrize(("truth", "clusters"), [(0.5, 400), (0.9, 100), (0.75, 30)])
def test_intervals_of_shares_hold_the_truth(truth, clusters):
    """95 % of them, with values that come in clusters of one cause; more or fewer would be wrong."""
    rng = np.random.default_rng(1)
    held, trials = 0, 400
    for _ in range(trials):
        causes = rng.beta(4 * truth, 4 * (1 - truth), clusters)
        values = (rng.random((3, clusters)) < causes).astype(float)
        found = share(values.ravel().tolist(), list(range(clusters)) * 3)
        held += found.low <= truth <= found.high
    assert 0.92 < held / trials < 0.98


def test_weights_count_and_widen_the_interval():
    even, uneven = share([1, 0] * 50), share([1, 0] * 50, weights=[3, 3, 1, 1] * 25)
    assert uneven.value == even.value == 0.5 and uneven.high - uneven.low > 1.05 * (even.high - even.low)
    assert share([1, 0] * 50, weights=[3, 1] * 50).value == 0.75 and share([1, 0] * 50, weights=[2, 2] * 50) == even


def test_shares_at_the_ends_have_intervals_and_few_clusters_say_nothing():
    found = share([1.0] * 40)
    assert found.value == found.high == 1 and 0.88 < found.low < 0.95
    assert share([1.0] * 40, ["a"] * 20 + ["b"] * 20) == type(found)(1.0, 0.0, 1.0, 40) and share([]) is None
