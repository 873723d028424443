"""Compares the lengths of sampled, trained and waiting rollouts, and warns if training misses some lengths."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np

from megatron_lwz.config.lengths import LengthsSection
from megatron_lwz.rollout.lengths import (
    TRAINED,
    GroupLengths,
    Integers,
    Sample,
    beyond_chance,
    distribution_gap,
    main_cause,
    sample,
)
from megatron_lwz.types import FinishReason, Group

log = logging.getLogger(__name__)

TRUNCATED, ZERO_VARIANCE, NO_SCORE = "truncated", "zero variance", "no score"
"""Reasons why a rollout of a trained group has no weight. (For groups that are not trained, the journal holds the
reason.)
"""
FAILED, PROMPTS_CHANGED, SIZE_CHANGED = "failed", "prompts changed", "group size changed"
"""Reasons why a group is never trained on, besides ZERO_VARIANCE."""

ADVICE = {
    TRUNCATED: "those cut at the token limit are masked: raise rollout.max_new_tokens (or the stage's), or set grpo.truncated: penalty",
    ZERO_VARIANCE: "groups that score alike are left out: their lengths need a reward that tells such texts apart",
    NO_SCORE: "groups without any score are left out: see what the judge or reward model refuses in the log",
    FAILED: "groups whose requests failed are given up: see the engines' errors in the log, raise rollout.retries",
    PROMPTS_CHANGED: "groups of other prompts were dropped at a restart: this passes by itself",
    SIZE_CHANGED: "groups of another size were dropped at a restart: this passes by itself",
}

_ROLLOUTS = 4096
"""Number of rollouts that is enough for one comparison. Older batches are then left out."""
_REARM = 0.5
"""Fraction of the allowed gap. Once the gap falls below it, the same cause may be warned of again."""

Read = Callable[[int, Container[int]], Iterable[GroupLengths]]
"""(first id, ids to skip) → lengths of the groups from the first id on, like `Journal.lengths`."""


def exclusions(group: Group, weights: Sequence[float], *, mask_truncated: bool) -> dict[int, str]:
    """Returns index → why the rollout has no weight in the loss, for `Journal.exclude`. `weights`: one per rollout."""
    scored = any(score.valid for scores in group.scores for score in scores.values())
    found = {}
    for index, (rollout, weight) in enumerate(zip(group.rollouts, weights, strict=True)):
        if weight <= 0:
            masked = mask_truncated and rollout.truncated
            found[index] = TRUNCATED if masked else ZERO_VARIANCE if scored else NO_SCORE
    return found


class LengthBook:
    """Compares batches once all their groups are accounted for.

    It reads only the journal, so a resumed run reports the same. A step reports the newest batch that is surely
    complete: the groups admitted `staleness` steps ago. It warns once for each cause, and again only after the gap had
    closed.
    """

    def __init__(self, section: LengthsSection, staleness: int) -> None:
        self._section = section
        self._staleness = staleness
        self._first = 0
        self._known: dict[int, GroupLengths] = {}
        """Accounted groups that later steps compare again."""
        self._warned: set[str] = set()

    def measure(self, step: int, read: Read) -> dict[str, float]:
        """Returns metrics `length/…` after training step `step`, once its groups are marked in the journal.

        May log a warning.
        """
        newest = step - self._staleness
        groups = [*self._known.values(), *read(self._first, self._known.keys())]
        metrics = _waiting(groups, step)
        complete = self._complete(groups, newest)
        self._forget(groups, newest + 2 - self._section.window)
        batch = sample(group for group in complete if group.admitted == newest)
        if len(batch.tokens):
            metrics |= {"length/version": newest - 1.0} | _describe(batch, complete, newest)
            metrics |= self._compare(step, complete, newest)
        return metrics

    def _complete(self, groups: Sequence[GroupLengths], newest: int) -> list[GroupLengths]:
        """Returns the groups of the batches to compare. Batches with a group that is not accounted for are left out."""
        steps = range(max(1, newest - self._section.window + 1), newest + 1)
        open_steps = {group.admitted for group in groups if not group.accounted}
        return [group for group in groups if group.admitted in steps and group.admitted not in open_steps]

    def _forget(self, groups: Sequence[GroupLengths], oldest: int) -> None:
        """Keeps the groups that the next step needs: it compares batches from `oldest` on."""
        needed = [group for group in groups if group.admitted >= oldest or not group.accounted]
        self._first = min((group.id for group in needed), default=self._first)
        self._known = {group.id: group for group in needed if group.accounted}

    def _compare(self, step: int, complete: Sequence[GroupLengths], newest: int) -> dict[str, float]:
        windows = self._windows(complete, newest)
        gaps = [distribution_gap(found.tokens, found.trained) for found in windows]
        level = self._section.false_alarms / len(windows)
        beyond = (
            (found, gap)
            for found, gap in zip(windows, gaps, strict=True)
            if gap > self._section.gap and beyond_chance(found, level)
        )
        parted = next(beyond, None)
        if parted is not None:
            self._warn(step, *parted)
        elif max(gaps) < _REARM * self._section.gap:
            self._warned.clear()
        sampled, trained = windows[0].tokens, windows[0].trained
        return {
            "length/gap": gaps[0] if len(trained) else math.nan,
            "length/gap_window": gaps[-1],
            "length/gap_mean": float(trained.mean() - sampled.mean()) if len(trained) else math.nan,
            "length/parted": float(parted is not None),
        }

    def _windows(self, complete: Sequence[GroupLengths], newest: int) -> list[Sample]:
        """Returns the newest batch alone, which shows what has just begun, then the newest 2, 4, … batches together.

        The larger windows show small gaps.
        """
        found: list[Sample] = []
        size, most = 1, min(self._section.window, newest)
        while True:
            found.append(sample(group for group in complete if group.admitted > newest - size))
            if size == most or len(found[-1].tokens) >= _ROLLOUTS:
                return found
            size = min(2 * size, most)

    def _warn(self, step: int, found: Sample, gap: float) -> None:
        cause = main_cause(found)
        if cause is not None and cause not in self._warned:
            self._warned.add(cause)
            log.warning("%s", warning(step, found, cause, gap, self._section))


def warning(step: int, found: Sample, cause: str, gap: float, section: LengthsSection) -> str:
    """Returns one line: how far the lengths differ, which cause contributes most, and what to do."""
    sampled, trained = float(found.tokens.mean()), float(found.trained.mean())
    share = sum(fate == cause for fate in found.fates) / len(found.fates)
    oldest, newest = found.batch[0] - 1, found.batch[-1] - 1
    versions = f"weights {newest}" if oldest == newest else f"weights {oldest} to {newest}"
    return (
        f"step {step}: training does not see the lengths that the policy writes: {sampled:.0f} tokens were sampled and "
        f"{trained:.0f} trained on in the mean ({trained / sampled - 1:+.0%}; {versions}; gap {gap:.3f}, by chance in "
        f"less than one of {1 / section.false_alarms:.0f} steps). {share:.0%} of the rollouts are {cause!r}: "
        f"{ADVICE.get(cause, 'see the log for what dropped them')}"
    )


def _describe(batch: Sample, complete: Sequence[GroupLengths], newest: int) -> dict[str, float]:
    """Returns metrics of the lengths that one batch sampled and of those that training saw."""
    metrics = _quantiles("sampled", batch.tokens) | _quantiles("trained", batch.trained)
    ends = [rollout.end for group in complete if group.admitted == newest for rollout in group.rollouts]
    shares = {
        "truncated": ends.count(FinishReason.LENGTH.value),
        "stopped": ends.count(FinishReason.GUARD.value),
        "abandoned": ends.count(None),
    }
    metrics |= {f"length/{name}": count / len(ends) for name, count in shares.items()}
    for fate in (*ADVICE, *sorted(set(batch.fates) - {*ADVICE, TRAINED})):
        metrics[f"length/excluded/{fate.replace(' ', '_')}"] = batch.fates.count(fate) / len(ends)
    return metrics


def _waiting(groups: Iterable[GroupLengths], step: int) -> dict[str, float]:
    """Returns metrics of the rollouts that have begun and not ended, of groups that may still be trained.

    Groups that an earlier process admitted later than `step` sleep until their step comes again.
    """
    waits = [group for group in groups if not group.accounted and group.admitted <= step]
    tokens = [rollout.tokens for group in waits for rollout in group.rollouts if rollout.end is None]
    return {
        "length/waiting/rollouts": float(len(tokens)),
        "length/waiting/mean": float(np.mean(tokens)) if tokens else 0.0,
        "length/waiting/max": float(max(tokens, default=0)),
        "length/waiting/age": float(max((step - group.admitted for group in waits), default=0)),
    }


def _quantiles(name: str, tokens: Integers) -> dict[str, float]:
    metrics = {f"length/{name}/rollouts": float(len(tokens))}
    if len(tokens):
        metrics[f"length/{name}/mean"] = float(tokens.mean())
        found = np.quantile(tokens, (0.5, 0.9, 0.99), method="inverted_cdf").tolist()
        metrics |= {f"length/{name}/{label}": value for label, value in zip(("p50", "p90", "p99"), found, strict=True)}
    return metrics
