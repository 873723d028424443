"""Evaluates a reward model on pairs: accuracy by kind, source and language, calibration, and a length baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_lwz.algorithms.bradley_terry import calibration
from megatron_lwz.evaluation.statistics import Estimate, estimate


@dataclass(frozen=True)
class ScoredPair:
    """A held-out pair with its two scores. Lengths are in words + CJK characters, and in tokens."""

    id: str
    kind: str
    source: str
    document: str
    language: str
    chosen: float
    rejected: float
    chosen_length: int
    rejected_length: int
    chosen_tokens: int
    rejected_tokens: int

    @property
    def difference(self) -> float:
        """Score difference r_chosen − r_rejected."""
        return self.chosen - self.rejected

    @property
    def win(self) -> float:
        """1 if the chosen text has the higher score, 1/2 at a tie, else 0."""
        return _win(self.difference)


def accuracies(pairs: Sequence[ScoredPair], key: Callable[[ScoredPair], str]) -> dict[str, Estimate]:
    """Returns the accuracy with a 95 % interval for every value of `key`, sorted by name."""
    found: defaultdict[str, list[ScoredPair]] = defaultdict(list)
    for pair in pairs:
        found[key(pair)].append(pair)
    return {name: _accuracy(members) for name, members in sorted(found.items())}


def length_baseline(pairs: Sequence[ScoredPair]) -> float:
    """Returns the best accuracy of a rule on length alone: the longer or the shorter text wins, in words or tokens."""
    rules = [
        sum(_win(pair.chosen_length - pair.rejected_length) for pair in pairs),
        sum(_win(pair.chosen_tokens - pair.rejected_tokens) for pair in pairs),
    ]
    count = max(1, len(pairs))
    return max(max(wins, len(pairs) - wins) for wins in rules) / count


def summarize_pairs(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Returns all figures of the report as JSON. The keys `by_…` hold {name: {value, low, high, count}}."""
    bins, error = calibration([pair.difference for pair in pairs])

    def table(key: Callable[[ScoredPair], str]) -> Mapping[str, Any]:
        return {name: asdict(estimate) for name, estimate in accuracies(pairs, key).items()}

    kinds = sorted({pair.kind for pair in pairs})
    return {
        "pairs": len(pairs),
        "accuracy": asdict(_accuracy(pairs)),
        "length_baseline": length_baseline(pairs),
        "by_kind": table(lambda pair: pair.kind),
        "by_source": table(lambda pair: pair.source),
        "by_language": table(lambda pair: pair.language),
        "length_baseline_by_kind": {kind: length_baseline([p for p in pairs if p.kind == kind]) for kind in kinds},
        "calibration": [asdict(found) for found in bins],
        "calibration_error": error,
    }


def _accuracy(pairs: Sequence[ScoredPair]) -> Estimate:
    """Returns the accuracy. Resamples whole documents, because pairs of one document are not independent."""
    found = estimate([pair.win for pair in pairs], [pair.document for pair in pairs])
    return found or Estimate(0.0, 0.0, 0.0, 0)


def _win(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)
