"""What the texts themselves say about a run's health: repetition, siblings that are alike, rewards that follow length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_lwz.ui.index import Index

GROUPS = 48
"""Groups at each end of the run that are compared: the first and the last that training used."""
_FEATURES = {"length": 1, "repetition": 2}


@dataclass(frozen=True)
class Signals:
    """Means over the first and the last groups, None where there is nothing to measure."""

    groups: int = 0
    """Groups at each end; 0 when too few were trained on."""
    repetition: tuple[float | None, float | None] = (None, None)
    """Share of repeated 4-grams in the answers: first, last."""
    likeness: tuple[float | None, float | None] = (None, None)
    """Similarity of siblings: first, last."""
    follows: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(component, feature) → mean rank correlation inside the last groups."""
    steps: tuple[int, int] = (0, 0)
    """First and last step of the last groups."""


def read_signals(index: Index) -> Signals:
    """Returns the signals of the journal as far as it is indexed."""
    with index.reading() as db:
        trained = db.execute(
            "SELECT c.group_id, c.step FROM journal.consumed c JOIN likeness l ON l.group_id = c.group_id ORDER BY c.step, c.group_id"
        ).fetchall()
        count = min(GROUPS, len(trained) // 2)
        if count < 2:
            return Signals()
        sides = [[group for group, _ in part] for part in (trained[:count], trained[-count:])]
        means = [
            db.execute(
                f"SELECT avg(repetition), avg(likeness.value) FROM rollouts r LEFT JOIN likeness USING (group_id) WHERE {_among(s)}"
            ).fetchone()
            for s in sides
        ]
        rows = db.execute(
            "SELECT r.group_id, s.component, s.value, r.words, r.repetition FROM rollouts r "
            f"JOIN journal.scores s ON s.group_id = r.group_id AND s.rollout = r.rollout WHERE s.valid AND {_among(sides[1])}"
        ).fetchall()
    return Signals(
        count,
        (means[0][0], means[1][0]),
        (means[0][1], means[1][1]),
        _follows(rows),
        (trained[-count][1], trained[-1][1]),
    )


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Returns Spearman's correlation, with mean ranks for ties; None where one side does not vary."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size > 0 else None


def _among(groups: Sequence[int]) -> str:
    return f"r.group_id IN ({', '.join(map(str, groups))})"


def _follows(rows: Sequence[tuple[int, str, float, int, float | None]]) -> dict[tuple[str, str], float]:
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    groups: defaultdict[tuple[int, str], list[tuple[float, int, float | None]]] = defaultdict(list)
    for group, component, value, words, repetition in rows:
        groups[group, component].append((value, words, repetition))
    for (_, component), members in groups.items():
        for feature, column in _FEATURES.items():
            pairs = [(member[0], other) for member in members if (other := member[column]) is not None]
            if len(pairs) > 2 and (same := rank_correlation(*zip(*pairs, strict=True))) is not None:
                found[component, feature].append(same)
    return {key: float(np.mean(values)) for key, values in found.items() if len(values) > 1}


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, places, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
