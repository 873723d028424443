"""Lengths of rollouts by what became of them, and whether those trained on are a fair sample of those written.

Everything is counted in tokens of the response. A *batch* here is all groups that one trainer step admitted: whether a
rollout belongs to it is settled before its length is known. (What finished lately, or what a step happens to train on, is
not such a choice: long texts finish later.) The weights that began the groups admitted for step a are those after a − 1 updates.
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
    """Written so far."""
    end: str | None
    """Value of its FinishReason, None while (or if it was left) unfinished."""
    excluded: str | None = None
    """Why it has no weight in the loss, if its group was trained on."""


@dataclass(frozen=True)
class GroupLengths:
    """The rollouts of one group that have begun, and what became of it. Accounted for: trained on or dropped."""

    id: int
    admitted: int
    step: int | None
    """The training step that used it."""
    dropped: str | None
    """Why it never will be."""
    rollouts: tuple[RolloutLength, ...]

    @property
    def accounted(self) -> bool:
        """Whether nothing will change any more."""
        return self.step is not None or self.dropped is not None

    def fates(self) -> list[str]:
        """For each rollout TRAINED, or why training never saw it."""
        if self.step is None:
            return [self.dropped or "waiting"] * len(self.rollouts)
        return [rollout.excluded or TRAINED for rollout in self.rollouts]


@dataclass(frozen=True)
class Sample:
    """N rollouts of batches that are accounted for."""

    tokens: Integers
    """[N]."""
    group: Integers
    """[N] number of its group, 0 … P − 1, ascending."""
    batch: Integers
    """[P] the step that admitted the group, ascending."""
    fates: tuple[str, ...]
    """N of them."""

    @property
    def excluded(self) -> Flags:
        """[N] whether training did not see it."""
        return np.array([fate != TRAINED for fate in self.fates], bool)

    @property
    def trained(self) -> Integers:
        """Lengths that training saw."""
        return self.tokens[~self.excluded]


def sample(groups: Iterable[GroupLengths]) -> Sample:
    """All begun rollouts of accounted groups, by batch.

    A rollout left unfinished (its group failed) is only known to be longer than what was written of it. It counts with
    the length of some rollout of its batch that training saw and that is at least as long: the redistribution to the
    right of Efron (1967), which makes the distribution that of Kaplan and Meier. Where none is, with its own length.
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
    """Largest difference of the two distribution functions (the Kolmogorov–Smirnov statistic), in [0, 1].

    0 if either is empty: then there is nothing to compare.
    """
    if not len(sampled) or not len(trained):
        return 0.0
    first, second = np.sort(np.asarray(sampled)), np.sort(np.asarray(trained))
    steps = np.concatenate([first, second])
    shares = [np.searchsorted(values, steps, side="right") / len(values) for values in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def main_cause(found: Sample) -> str | None:
    """The fate that parts the distributions most: the gap that it alone would leave. None if nothing is excluded."""
    fates = np.array(found.fates)
    gaps = {
        str(fate): distribution_gap(found.tokens, found.tokens[fates != fate])
        for fate in np.unique(fates)
        if fate != TRAINED
    }
    return max(gaps, key=lambda fate: gaps[fate], default=None)


def beyond_chance(found: Sample, false_alarms: float) -> bool:
    """Whether the gap is larger than exclusion without regard to length would give: an exact permutation test.

    What was trained is a part of what was sampled, so two-sample formulas do not apply. If exclusion has nothing to do with
    length, then within a batch any group could have got any other's exclusions, and within a group any rollout another's.
    (Rollouts of one prompt are alike: dealing them over groups would take that for a difference.) The
    K = ⌈1 / false_alarms⌉ − 1 gaps of exclusions dealt anew and the real one are then exchangeable, and the real one is the
    strictly largest with probability at most 1 / (K + 1) ≤ false_alarms, whatever the law of lengths and however small
    the sample. True if it is.
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
    """[count, N] exclusions dealt anew: over the groups of a batch, then over the rollouts of a group."""
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
    """[K] gaps between all N rollouts, in order of length, and those not excluded in each row of [K, N]."""
    kept = np.cumsum(~excluded, axis=1)
    total = kept[:, -1:]
    everything = np.arange(1, excluded.shape[1] + 1) / excluded.shape[1]
    gaps = np.abs(kept / np.maximum(total, 1) - everything)[:, last_of_equals].max(axis=1)
    return np.where(total[:, 0] > 0, gaps, 0.0)
