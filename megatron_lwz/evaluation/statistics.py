"""Computes means with confidence intervals, by bootstrap over prompts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
_Z = 1.959964
"""97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A mean, the bounds of its 95 % interval, and the number of values."""

    value: float
    low: float
    high: float
    count: int

    def as_json(self) -> dict[str, Any]:
        """Returns the estimate as a dict, for a result file."""
        return asdict(self)


def levels(prompts: int) -> tuple[float, float]:
    """Returns the bootstrap percentiles that bound a 95 % interval: 2.5 and 97.5, further apart for few prompts.

    The plain percentiles give intervals that are too narrow by √((n − 1)/n) and by the difference between Student's t
    and the normal distribution. This is the expanded percentile interval (Hesterberg 2015, section 4.2).
    """
    if prompts < 3:
        return 0.0, 100.0
    n, z = prompts - 1, _Z
    student = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    low = 50 * math.erfc(math.sqrt(prompts / n) * student / math.sqrt(2))
    return low, 100 - low


def estimate(values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0) -> Estimate | None:
    """Returns the mean of `values` and its bootstrap interval, None without values.

    `clusters` names the prompt of each value. Whole prompts are resampled, because samples of one prompt, or criteria
    of one query, are not independent. The same values always give the same interval.
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
    low, high = np.percentile(means, levels(len(sums)))
    return Estimate(float(data.mean()), float(low), float(high), len(data))
