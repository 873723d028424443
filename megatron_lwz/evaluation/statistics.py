"""Computes means with confidence intervals, by bootstrap over prompts, shares of many pairs in closed form, and ranks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
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


def levels(prompts: int, comparisons: int = 1) -> tuple[float, float]:
    """Returns the bootstrap percentiles that bound a 95 % interval: 2.5 and 97.5, further apart for few prompts.

    `comparisons`: the number of intervals that must all hold together with 95 % (Bonferroni), each of which is wider.

    The plain percentiles give intervals that are too narrow by √((n − 1)/n) and by the difference between Student's t
    and the normal distribution. This is the expanded percentile interval (Hesterberg 2015, section 4.2).
    """
    if prompts < 3:
        return 0.0, 100.0
    z = _Z if comparisons == 1 else NormalDist().inv_cdf(1 - 0.025 / comparisons)
    low = 50 * math.erfc(math.sqrt(prompts / (prompts - 1)) * _student(prompts - 1, z) / math.sqrt(2))
    return low, 100 - low


def estimate(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0, comparisons: int = 1
) -> Estimate | None:
    """Returns the mean of `values` and its bootstrap interval, None without values.

    `clusters` names the prompt of each value. Whole prompts are resampled, because samples of one prompt, or criteria
    of one query, are not independent. The same values always give the same interval. `comparisons` is that of `levels`.
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
    low, high = np.percentile(means, levels(len(sums), comparisons))
    return Estimate(float(data.mean()), float(low), float(high), len(data))


def mean_of_groups(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Estimate | None:
    """Returns the mean of the groups' means, each of which counts alike, and its bootstrap interval; None without values.

    The values of each group are resampled by themselves. `count` is that of all values.
    """
    kept = [np.asarray(values, np.float64) for values in groups if len(values)]
    if not kept:
        return None
    rng = np.random.default_rng(seed)
    drawn = [
        rng.multinomial(len(data), np.full(len(data), 1 / len(data)), size=RESAMPLES) @ data / len(data)
        for data in kept
    ]
    low, high = np.percentile(np.mean(drawn, axis=0), levels(min(map(len, kept))))
    return Estimate(float(np.mean([data.mean() for data in kept])), float(low), float(high), sum(map(len, kept)))


def ratio(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> Estimate | None:
    """Returns the sum of the numerators over that of the denominators, and its bootstrap interval over the pairs.

    None if the denominators, which must not be negative, sum to 0.
    """
    if not sum(denominators):
        return None
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    count = len(above)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    sums = drawn @ below
    values = (drawn @ above)[sums > 0] / sums[sums > 0]
    low, high = np.percentile(values, levels(count))
    return Estimate(float(above.sum() / below.sum()), float(low), float(high), count)


def share(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, weights: Sequence[float] | None = None
) -> Estimate | None:
    """Returns the mean of values in [0, 1] and its 95 % interval, None without values.

    It is Wilson's interval, for as many independent values as weights and the spread between clusters leave (at most
    all). So it costs no resampling, and holds for shares near 0 and 1. `clusters` names the prompt of each value;
    `weights`, above 0, say how much each value counts.
    """
    if not values:
        return None
    data, count = np.asarray(values, np.float64), len(values)
    weight = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    total = float(weight.sum())
    mean = float((weight * data).sum()) / total
    names = clusters if clusters is not None else range(count)
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if len(place) < 3:
        return Estimate(mean, 0.0, 1.0, count)
    sums = np.bincount(np.array([place[name] for name in names]), weight * (data - mean))
    most = total**2 / float((weight**2).sum())
    variance = float((sums**2).sum()) * len(place) / (len(place) - 1) / total**2
    effective = min(most, mean * (1 - mean) / variance if variance > 0 else len(place))
    z = _student(len(place) - 1)
    middle, scale = mean + z * z / (2 * effective), 1 + z * z / effective
    half = z * math.sqrt(mean * (1 - mean) / effective + z * z / (4 * effective**2))
    return Estimate(mean, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), count)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns Spearman's rho; ties get their mean rank. None for fewer than two pairs or if one side is constant."""
    if len(first) < 2:
        return None
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else None


def _student(freedom: int, z: float = _Z) -> float:
    """Returns a quantile of Student's t distribution from the normal one's (`z`), by its expansion for many degrees."""
    n = freedom
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


def _ranks(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns ranks counted from 0; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]
