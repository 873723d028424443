"""The figures of reward components on human choices, together: of each component, of people, and between components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from megatron_lwz.evaluation.agreement import Agreement, Choice, agreement, is_matched, length_correlation, points
from megatron_lwz.evaluation.statistics import share


@dataclass(frozen=True)
class PreferenceReport:
    """All figures of `lwz evaluate preferences`.

    `people` is what `people` returns. `components` are in the config's order, then the combination under the config.
    `weights` are the components'. `concord[a][b]` is the share of pairs in which a and b prefer the same text.
    `left_out` and `forms` count rows and texts by reason and by form.
    """

    pairs: int
    tolerance: float
    people: Mapping[str, Any]
    components: Sequence[Agreement]
    weights: Mapping[str, float]
    concord: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, int]
    forms: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Returns the content of preferences.json."""
        found = dict(vars(self))
        return found | {"components": {component.name: component.as_json() for component in self.components}}


def report(
    choices: Sequence[Choice],
    masked: Mapping[str, Mapping[str, int]],
    weights: Mapping[str, float],
    *,
    tolerance: float,
    left_out: Mapping[str, int],
    forms: Mapping[str, int],
) -> PreferenceReport:
    """Returns the figures of every component that `masked` names, in its order. There is at least one choice."""
    components = [agreement(name, choices, reasons, tolerance=tolerance) for name, reasons in masked.items()]
    scored = [component.name for component in components if component.scored]
    found = people(choices, tolerance)
    return PreferenceReport(
        len(choices), tolerance, found, components, weights, concord(scored, choices), left_out, forms
    )


def people(choices: Sequence[Choice], tolerance: float) -> dict[str, Any]:
    """Returns how far people themselves follow length: share that prefers the longer text, correlation, pairs matched."""
    apart = [choice for choice in choices if not is_matched(choice, tolerance)]
    longer = share([points(choice.ratio - 1) for choice in apart], [choice.document for choice in apart])
    return {
        "prefers_longer": longer.as_json() if longer else None,
        "length_correlation": length_correlation([(1.0, choice.ratio) for choice in choices]),
        "matched": len(choices) - len(apart),
    }


def concord(names: Sequence[str], choices: Sequence[Choice]) -> dict[str, dict[str, float]]:
    """Returns, for two components, the share of pairs in which they prefer the same text; a tie of one counts half."""
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for a, b in combinations(names, 2):
        both = [(x, y) for choice in choices if (x := choice.scores.get(a)) and (y := choice.scores.get(b))]
        same = [points((x[0] - x[1]) * (y[0] - y[1])) for x, y in both]
        if same:
            found[a][b] = found[b][a] = sum(same) / len(same)
    return found
