"""Means with confidence intervals, by bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean, the ends of its 95 % interval, and how many values it is the mean of."""

    value: float
    low: float
    high: float
    count: int

    def as_json(self) -> dict[str, Any]:
        """For a result file."""
        return asdict(self)


def estimate(values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0) -> Estimate | None:
    """Mean of `values` and its percentile interval; None without any.

    `clusters` names the prompt of each value: whole prompts are resampled, because samples of one prompt, or criteria of
    one query, are not independent. The same values give the same interval.
    """
    if not values:
        return None
    data = np.asarray(values, np.float64)
    names = list(clusters) if clusters is not None else list(range(len(data)))
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    index = np.array([place[name] for name in names])
    sums, counts = np.bincount(index, data), np.bincount(index)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(data.mean()), float(low), float(high), len(data))
