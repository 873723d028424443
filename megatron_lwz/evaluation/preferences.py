"""How well scores tell the better text of a pair: accuracy by kind, source and language, calibration, a length baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_lwz.algorithms.bradley_terry import calibration
from megatron_lwz.evaluation.statistics import Estimate, estimate


@dataclass(frozen=True)
class ScoredPair:
    """A held-out pair with its two scores; lengths in words + CJK characters, and in tokens."""

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
        """r_chosen − r_rejected."""
        return self.chosen - self.rejected

    @property
    def win(self) -> float:
        """1 if the chosen text has the higher score, 1/2 at a tie, else 0."""
        return _win(self.difference)


def accuracies(pairs: Sequence[ScoredPair], key: Callable[[ScoredPair], str]) -> dict[str, Estimate]:
    """Accuracy with a 95 % interval for every value of `key`, by name."""
    found: defaultdict[str, list[ScoredPair]] = defaultdict(list)
    for pair in pairs:
        found[key(pair)].append(pair)
    return {name: _accuracy(members) for name, members in sorted(found.items())}


def length_baseline(pairs: Sequence[ScoredPair]) -> float:
    """The best accuracy that a rule on length alone reaches here: longer or shorter wins, by words or by tokens."""
    rules = [
        sum(_win(pair.chosen_length - pair.rejected_length) for pair in pairs),
        sum(_win(pair.chosen_tokens - pair.rejected_tokens) for pair in pairs),
    ]
    count = max(1, len(pairs))
    return max(max(wins, len(pairs) - wins) for wins in rules) / count


def summarize_pairs(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Everything that the report shows, as JSON; `by_…`: {name: {value, low, high, count}}."""
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
    """Pairs of one document are not independent: whole documents are resampled."""
    found = estimate([pair.win for pair in pairs], [pair.document for pair in pairs])
    return found or Estimate(0.0, 0.0, 0.0, 0)


def _win(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)
