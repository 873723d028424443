"""Preference pairs from a run's own rollouts: of each prompt group the best and the worst finished sibling.

The journal ranks siblings already, so such pairs need no further label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from megatron_lwz.data.preferences.formats import EQUAL, TEXT_OUTSIDE
from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preferences.rendering import says_more
from megatron_lwz.data.replies import EMPTY, find_fault

if TYPE_CHECKING:  # these types import torch, which making pairs from documents does not need
    from megatron_lwz.types import Group

KIND = "siblings"


def sibling_pairs(
    groups: Iterable[tuple[Group, Sequence[float | None]]], *, gap: float, source: str
) -> tuple[list[PreferencePair], Counter[str]]:
    """Returns (at most one pair per group, counts of what was left out by reason).

    Each group comes with the value of every rollout, None for one without. The pair is the rollout of the highest value
    against that of the lowest, of those that ended by themselves. They must differ by more than 0 and at least `gap`,
    which becomes the pair's margin. The chosen one must be a whole reply; the rejected one may have any form, since
    its form may be its fault.
    """
    pairs: list[PreferencePair] = []
    counts: Counter[str] = Counter()
    for group, values in groups:
        counts["groups read"] += 1
        ended = [rollout.finish_reason.value == "stop" for rollout in group.rollouts]
        counts["rollouts left out: truncated or stopped"] += len(ended) - sum(ended)
        counts["rollouts left out: without a value"] += sum(
            value is None for value, whole in zip(values, ended, strict=True) if whole
        )
        known = [
            (value, place)
            for place, (value, whole) in enumerate(zip(values, ended, strict=True))
            if whole and value is not None
        ]
        found = _pair(group, known, gap, source)
        if isinstance(found, str):
            counts[f"groups left out: {found}"] += 1
        else:
            pairs.append(found)
    return pairs, counts


def _pair(group: Group, known: Sequence[tuple[float, int]], gap: float, source: str) -> PreferencePair | str:
    """Returns the pair of a group, or the reason why it gives none. Of equal values the first rollout is taken."""
    if len(known) < 2:
        return "fewer than two rollouts left"
    (high, best), (low, worst) = max(known, key=lambda item: (item[0], -item[1])), min(known)
    if high == low:
        return "tied"
    if high - low < gap:
        return "gap too small"
    chosen, rejected = group.rollouts[best].text, group.rollouts[worst].text
    if chosen.strip() == rejected.strip():
        return EQUAL
    if not rejected.strip():
        return EMPTY
    if (fault := find_fault(chosen) or (TEXT_OUTSIDE if says_more(chosen) else None)) is not None:
        return f"best reply {fault}"
    return PreferencePair(
        id=f"{source}/{group.id}",
        prompt=group.prompt.text,
        chosen=chosen,
        rejected=rejected,
        kind=KIND,
        source=source,
        document=group.prompt.id,
        margin=high - low,
        template=group.prompt.template,
    )
