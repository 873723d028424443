"""Lengths of rollouts by fate, and a test whether the trained ones are a fair sample of the generated ones.

All lengths are in tokens of the response. A *batch* here means all groups that one trainer step admitted: whether a
rollout belongs to it is fixed before its length is known. (The rollouts that finished lately, or those that a step
happens to train on, are not such a choice, because long texts finish later.) The groups admitted for step a are begun
by the weights after a − 1 updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

TRAINED = ""
"""The fate of a rollout with a weight above 0 in the loss."""

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RolloutLength:
    """One rollout that has begun."""

    tokens: int
    """Number of tokens generated so far."""
    end: str | None
    """Value of its FinishReason. None while it is unfinished, or if it was abandoned."""
    excluded: str | None = None
    """Why it has no weight in the loss, if its group was trained on."""


@dataclass(frozen=True)
class GroupLengths:
    """The begun rollouts of one group, and the group's fate.

    A group is accounted for once it was trained on or dropped.
    """

    id: int
    admitted: int
    step: int | None
    """The training step that used the group, None if none did."""
    dropped: str | None
    """Why the group will never be trained on."""
    rollouts: tuple[RolloutLength, ...]

    @property
    def accounted(self) -> bool:
        """Whether the group's fate is final."""
        return self.step is not None or self.dropped is not None

    def fates(self) -> list[str]:
        """Returns, for each rollout, TRAINED or the reason why training did not see it."""
        if self.step is None:
            return [self.dropped or "waiting"] * len(self.rollouts)
        return [rollout.excluded or TRAINED for rollout in self.rollouts]


@dataclass(frozen=True)
class Sample:
    """N rollouts of batches that are accounted for."""

    tokens: Integers
    """[N] length of each rollout."""
    group: Integers
    """[N] number of the rollout's group, 0 … P − 1, ascending."""
    batch: Integers
    """[P] step that admitted the group, ascending."""
    fates: tuple[str, ...]
    """N fates, one per rollout."""

    @property
    def excluded(self) -> Flags:
        """[N] whether training did not see the rollout."""
        return np.array([fate != TRAINED for fate in self.fates], bool)

    @property
    def trained(self) -> Integers:
        """Lengths of the rollouts that training saw."""
        return self.tokens[~self.excluded]


def sample(groups: Iterable[GroupLengths]) -> Sample:
    """Returns all begun rollouts of accounted groups, by batch.

    A rollout left unfinished (because its group failed) is only known to be longer than what was generated. It counts
    with the length of a random rollout of its batch that training saw and that is at least as long. This is the
    redistribution to the right of Efron (1967), which makes the distribution that of Kaplan and Meier. If there is no
    such rollout, it counts with its own length.
    """
    ordered = sorted(groups, key=lambda group: (group.admitted, group.id))
    tokens: list[int] = []
    for admitted, together in groupby(ordered, key=lambda group: group.admitted):
        batch = list(together)
        trained = sorted(
            rollout.tokens
            for group in batch
            for rollout, fate in zip(group.rollouts, group.fates(), strict=True)
            if fate == TRAINED
        )
        noise = np.random.default_rng(admitted)
        for rollout in (rollout for group in batch for rollout in group.rollouts):
            longer = np.searchsorted(trained, rollout.tokens) if rollout.end is None else len(trained)
            known = longer == len(trained)
            tokens.append(rollout.tokens if known else trained[noise.integers(longer, len(trained))])
    return Sample(
        tokens=np.array(tokens, np.int64),
        group=np.repeat(np.arange(len(ordered)), [len(group.rollouts) for group in ordered]),
        batch=np.array([group.admitted for group in ordered], np.int64),
        fates=tuple(fate for group in ordered for fate in group.fates()),
    )


def distribution_gap(sampled: Sequence[int] | Integers, trained: Sequence[int] | Integers) -> float:
    """Returns the largest difference of the two distribution functions (the Kolmogorov–Smirnov statistic), in [0, 1].

    It is 0 if either sample is empty, because then there is nothing to compare.
    """
    if not len(sampled) or not len(trained):
        return 0.0
    first, second = np.sort(np.asarray(sampled)), np.sort(np.asarray(trained))
    steps = np.concatenate([first, second])
    shares = [np.searchsorted(values, steps, side="right") / len(values) for values in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def main_cause(found: Sample) -> str | None:
    """Returns the fate that separates the distributions most, measured by the gap that it alone would leave.

    None if nothing is excluded.
    """
    fates = np.array(found.fates)
    gaps = {
        str(fate): distribution_gap(found.tokens, found.tokens[fates != fate])
        for fate in np.unique(fates)
        if fate != TRAINED
    }
    return max(gaps, key=lambda fate: gaps[fate], default=None)


def beyond_chance(found: Sample, false_alarms: float) -> bool:
    """Returns whether the gap is larger than exclusion independent of length explains: an exact permutation test.

    The trained rollouts are a part of the sampled ones, so two-sample formulas do not apply. If exclusion has nothing
    to do with length, then within a batch the exclusions of groups are exchangeable, and so are those of the rollouts
    within a group. (Rollouts of one prompt are alike. Shuffling them across groups would mistake that for a
    difference.) The K = ⌈1 / false_alarms⌉ − 1 gaps of shuffled exclusions and the observed gap are then exchangeable.
    The observed gap is the strictly largest with probability at most 1 / (K + 1) ≤ false_alarms, whatever the
    distribution of lengths and however small the sample. Returns True if it is.
    """
    if not len(found.trained):
        return False
    order = np.argsort(found.tokens, kind="stable")
    last_of_equals = np.append(np.diff(found.tokens[order]) > 0, True)
    observed = _gaps(found.excluded[order][None], last_of_equals)[0]
    if observed == 0:
        return False
    noise = np.random.default_rng(found.batch)
    left = math.ceil(1 / false_alarms) - 1
    while left > 0:
        count = min(left, 32)
        shuffled = _shuffle(found, noise, count)
        if (_gaps(shuffled[:, order], last_of_equals) >= observed - 1e-12).any():
            return False
        left -= count
    return True


def _shuffle(found: Sample, noise: np.random.Generator, count: int) -> Flags:
    """Returns [count, N] shuffled exclusions: over the groups of a batch, then over the rollouts of a group."""
    sizes = np.bincount(found.group, minlength=len(found.batch))
    shares = np.bincount(found.group, found.excluded, minlength=len(found.batch)) / np.maximum(sizes, 1)
    _, batch = np.unique(found.batch, return_inverse=True)
    dealt = shares[np.argsort(batch + noise.random((count, len(batch))), axis=1)]
    if np.isin(shares, (0.0, 1.0)).all():
        return dealt[:, found.group] == 1.0
    turns = np.argsort(found.group + noise.random((count, len(found.tokens))), axis=1)
    place = np.arange(len(found.tokens)) - (np.cumsum(sizes) - sizes)[found.group]
    chosen = place < np.rint(dealt * sizes)[:, found.group]
    excluded = np.empty_like(chosen)
    np.put_along_axis(excluded, turns, chosen, axis=1)
    return excluded


def _gaps(excluded: Flags, last_of_equals: Flags) -> npt.NDArray[np.float64]:
    """Returns [K] gaps between all N rollouts, in order of length, and those not excluded in each row of [K, N]."""
    kept = np.cumsum(~excluded, axis=1)
    total = kept[:, -1:]
    everything = np.arange(1, excluded.shape[1] + 1) / excluded.shape[1]
    gaps = np.abs(kept / np.maximum(total, 1) - everything)[:, last_of_equals].max(axis=1)
    return np.where(total[:, 0] > 0, gaps, 0.0)
