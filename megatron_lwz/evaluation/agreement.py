"""How far the scores of reward components agree with people's choices, and how far both follow length.

A choice counts as 1 if the component scores the preferred text higher, 1/2 at equal scores, else 0. Two texts are
length-matched if the longer one has at most 1 + tolerance times the units of the shorter. What difference is left is
balanced: choices of the longer text together count as much as choices of the shorter, so that length cannot help.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from megatron_lwz.evaluation.statistics import Estimate, rank_correlation, share

FEWEST = 30
"""Least number of length-matched pairs from which a component is judged."""
LEAST = 0.55
"""Least accuracy over length-matched pairs of a component that earns its weight: with many pairs 0.51 is no accident, but
teaches little."""
_EDGES = (1.25, 2.0)
"""Ratios of lengths between bins, beside the tolerance."""

Standing = Literal["earns", "weak", "against", "length", "chance", "open", "equal", "none"]
LINES: Mapping[Standing, str] = {
    "earns": "earns its weight: agrees with people at equal lengths",
    "weak": "hardly better than chance at equal lengths",
    "against": "prefers what people do not, at equal lengths",
    "length": "follows length: prefers the {what} text, and is no better than chance at equal lengths",
    "chance": "no better than chance at equal lengths",
    "open": "cannot be told: {count} length-matched pairs, {fewest} are needed",
    "equal": "gave both texts of every pair the same score",
    "none": "gave no score",
}
"""What a component's figures say of it, in words."""


@dataclass(frozen=True)
class Choice:
    """One human choice with its scores. `ratio` = length of the preferred text / length of the other (units, above 0).

    `scores` maps a component to its scores (preferred, other), None where masked. `orders` maps a component that
    compares texts to (comparisons whose two orders agree, comparisons).
    """

    id: str
    document: str
    ratio: float
    categories: Mapping[str, tuple[str, ...]]
    scores: Mapping[str, tuple[float, float] | None]
    orders: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """The figures of one component. Estimates are shares; None where no pair gives one.

    `matched`: accuracy over length-matched pairs, balanced as above. `longer_won`, `shorter_won`: accuracy where people
    prefer the longer, the shorter text. `prefers_longer`: share of pairs in which the component scores the longer text
    higher; `people_longer`: in which people prefer it. These four leave out length-matched pairs.
    `length_correlation`: Spearman's, of the score difference with the logarithm of the length ratio. `bins` maps a range
    of length ratios, and `by` a column and its values, to accuracies.
    """

    name: str
    scored: int
    masked: Mapping[str, int]
    ties: int
    accuracy: Estimate | None
    matched: Estimate | None
    longer_won: Estimate | None
    shorter_won: Estimate | None
    prefers_longer: Estimate | None
    people_longer: float | None
    length_correlation: float | None
    orders: Estimate | None
    bins: Mapping[str, Estimate]
    by: Mapping[str, Mapping[str, Estimate]]

    @property
    def standing(self) -> Standing:
        """What the figures say: see `LINES`."""
        if not self.scored:
            return "none"
        if self.ties == self.scored:
            return "equal"
        if self.matched is None or self.matched.count < FEWEST:
            return "open"
        if self.matched.low > 0.5:
            return "earns" if self.matched.value >= LEAST else "weak"
        if self.matched.high < 0.5:
            return "against"
        longer = self.prefers_longer
        return "length" if longer is not None and not longer.low <= 0.5 <= longer.high else "chance"

    @property
    def line(self) -> str:
        """The standing in words."""
        longer, people_do = self.prefers_longer, self.people_longer
        what = "longer" if longer is None or longer.value > 0.5 else "shorter"
        count = self.matched.count if self.matched else 0
        line = LINES[self.standing].format(what=what, count=count, fewest=FEWEST)
        if self.standing == "none":
            reasons = ", ".join(f"{count} × {reason}" for reason, count in sorted(self.masked.items()) if count)
            return f"{line} ({reasons})" if reasons else line
        if self.standing != "earns" or longer is None or people_do is None or longer.low <= people_do <= longer.high:
            return line
        return (
            f"{line}; prefers the {'longer' if longer.value > people_do else 'shorter'} text more often than people do"
        )

    def as_json(self) -> dict[str, Any]:
        """Returns the figures for a result file."""
        found: dict[str, Any] = {"standing": self.standing, "line": self.line}
        for name, value in vars(self).items():
            found[name] = value.as_json() if isinstance(value, Estimate) else value
        found["bins"] = {name: value.as_json() for name, value in self.bins.items()}
        found["by"] = {c: {name: value.as_json() for name, value in values.items()} for c, values in self.by.items()}
        return found


def agreement(name: str, choices: Sequence[Choice], masked: Mapping[str, int], *, tolerance: float) -> Agreement:
    """Returns the figures of the component `name`. `masked` counts its pairs without a score, by reason."""
    scored = [(choice, pair) for choice in choices if (pair := choice.scores.get(name)) is not None]
    wins = [(choice, points(better - other)) for choice, (better, other) in scored]
    apart = [(choice, win) for choice, win in wins if not is_matched(choice, tolerance)]

    def of(members: Sequence[tuple[Choice, float]]) -> Estimate | None:
        return share([win for _, win in members], [choice.document for choice, _ in members])

    def where(holds: Callable[[Choice], bool], members: Sequence[tuple[Choice, float]]) -> Estimate | None:
        return of([(choice, win) for choice, win in members if holds(choice)])

    compared = [(choice.document, *choice.orders[name]) for choice, _ in wins if name in choice.orders]
    return Agreement(
        name,
        len(scored),
        masked,
        sum(better == other for _, (better, other) in scored),
        of(wins),
        _balanced([(choice, win) for choice, win in wins if is_matched(choice, tolerance)]),
        where(lambda choice: choice.ratio > 1, apart),
        where(lambda choice: choice.ratio < 1, apart),
        of([(choice, win if choice.ratio > 1 else 1 - win) for choice, win in apart]),
        sum(choice.ratio > 1 for choice, _ in apart) / len(apart) if apart else None,
        length_correlation([(better - other, choice.ratio) for choice, (better, other) in scored]),
        share([agreed / count for _, agreed, count in compared], [document for document, *_ in compared]),
        {label: found for label, holds in _bins(tolerance).items() if (found := where(holds, wins)) is not None},
        _by_category(wins, of),
    )


def _balanced(members: Sequence[tuple[Choice, float]]) -> Estimate | None:
    """Returns the accuracy in which choices of longer texts, and of shorter ones, have the same total weight."""
    longer, shorter = (sum(sign * math.log(choice.ratio) > 0 for choice, _ in members) for sign in (1, -1))
    uneven = longer + shorter

    def weight(choice: Choice) -> float:
        if choice.ratio == 1 or not longer or not shorter:
            return 1.0
        return uneven / (2 * (longer if choice.ratio > 1 else shorter))

    documents = [choice.document for choice, _ in members]
    return share([win for _, win in members], documents, [weight(choice) for choice, _ in members])


def _by_category(
    wins: Sequence[tuple[Choice, float]], of: Callable[[Sequence[tuple[Choice, float]]], Estimate | None]
) -> dict[str, dict[str, Estimate]]:
    """Returns column → value → accuracy, values by name. A column with one value for all pairs says nothing, it is left out."""
    table: dict[str, dict[str, list[tuple[Choice, float]]]] = defaultdict(lambda: defaultdict(list))
    for choice, win in wins:
        for column, values in choice.categories.items():
            for value in values:
                table[column][value].append((choice, win))
    return {
        column: {value: found for value in sorted(values) if (found := of(values[value])) is not None}
        for column, values in sorted(table.items())
        if len(values) > 1 or any(len(members) < len(wins) for members in values.values())
    }


def _bins(tolerance: float) -> dict[str, Callable[[Choice], bool]]:
    """Returns label → whether a choice is in the bin, from much shorter to much longer preferred texts."""
    inner = 1 + tolerance
    edges = [inner, *(edge for edge in _EDGES if edge > inner), math.inf]
    far = list(pairwise(edges))
    above = {_label(low, high, "longer"): (low, high) for low, high in far}
    below = {_label(low, high, "shorter"): (1 / high, 1 / low) for low, high in reversed(far)}

    def inside(low: float, high: float, *, longer: bool) -> Callable[[Choice], bool]:
        if longer:
            return lambda choice: low < choice.ratio <= high
        return lambda choice: low <= choice.ratio < high

    return {
        **{label: inside(*bounds, longer=False) for label, bounds in below.items()},
        "matched": lambda choice: is_matched(choice, tolerance),
        **{label: inside(*bounds, longer=True) for label, bounds in above.items()},
    }


def _label(low: float, high: float, what: str) -> str:
    return f"over {low:g} × {what}" if high == math.inf else f"{low:g} to {high:g} × {what}"


def is_matched(choice: Choice, tolerance: float) -> bool:
    """Returns whether the two texts are length-matched."""
    return max(choice.ratio, 1 / choice.ratio) <= 1 + tolerance


def length_correlation(members: Sequence[tuple[float, float]]) -> float | None:
    """Returns Spearman's correlation of score differences and length ratios; which text comes first does not matter."""
    both = [(sign * gap, sign * math.log(ratio)) for gap, ratio in members for sign in (1, -1)]
    return rank_correlation([gap for gap, _ in both], [ratio for _, ratio in both])


def points(difference: float) -> float:
    """Returns 1 for a positive difference, 1/2 for none, else 0."""
    return 0.5 if difference == 0 else float(difference > 0)
