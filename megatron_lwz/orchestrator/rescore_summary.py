"""Differences that another reward config makes, in numbers: per component, per length bucket, per group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from megatron_lwz.evaluation.statistics import rank_correlation
from megatron_lwz.orchestrator.rescore import Rescored, Rescorer, Side
from megatron_lwz.rewards.composite import component_sections

_BUCKETS = 4
_EQUAL = 1e-6
"""Scores are fp32: smaller differences count as equal."""

Number = float | None


def summarize(rescorer: Rescorer, rows: Sequence[Rescored]) -> dict[str, Any]:
    """Returns the whole comparison as plain JSON values; None where nothing can be measured. Needs at least one row."""
    groups = [list(members) for _, members in groupby(rows, key=lambda row: row.group)]
    names = dict.fromkeys((*rescorer.old_names, *rescorer.new_names))
    steps = [row.step for row in rows if row.step is not None]
    return {
        "groups": len(groups),
        "rollouts": len(rows),
        "steps": [min(steps), max(steps)] if steps else None,
        "components": [_component(rescorer, name, rows, groups) for name in names],
        "advantages": _advantages(rows, groups),
        "lengths": _lengths(rescorer, rows),
    }


def flat_rows(rescorer: Rescorer, rows: Sequence[Rescored]) -> tuple[list[str], list[list[Any]]]:
    """Returns header and lines of a CSV file, one line per rollout. Masked values are empty."""
    old = [f"old_{name}" for name in rescorer.old_names]
    new = [f"new_{name}" for name in rescorer.new_names]
    head = ["group", "step", "prompt", "rollout", "length", "truncated", *old, *new, "old_advantage", "new_advantage"]
    lines = [
        [r.group, r.step, r.prompt, r.index, r.length, int(r.truncated), *r.old.scores, *r.new.scores,
         r.old.advantage, r.new.advantage]
        for r in rows
    ]  # fmt: skip
    return head, lines


def _component(
    rescorer: Rescorer, name: str, rows: Sequence[Rescored], groups: Sequence[Sequence[Rescored]]
) -> dict[str, Any]:
    old, new = _getter(rescorer.old_names, name), _getter(rescorer.new_names, name)
    pairs = [(old(row.old), new(row.new)) for row in rows]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    found = (_within(members, lambda row: old(row.old), lambda row: new(row.new)) for members in groups)
    ranks = [rank for rank in found if rank is not None]
    return {
        "name": name,
        "source": rescorer.sources.get(name, "left out"),
        "weight_old": component_sections(rescorer.old.reward)[name].weight if name in rescorer.old_names else None,
        "weight_new": component_sections(rescorer.new.reward)[name].weight if name in rescorer.new_names else None,
        "mean_old": _mean([a for a, _ in pairs if a is not None]),
        "mean_new": _mean([b for _, b in pairs if b is not None]),
        "masked_old": sum(a is None for a, _ in pairs) if name in rescorer.old_names else None,
        "masked_new": sum(b is None for _, b in pairs) if name in rescorer.new_names else None,
        "changed": _mean([float(abs(a - b) > _EQUAL) for a, b in both]),
        "rank_correlation": _mean(ranks),
        "share_old": _share(rows, rescorer.old_names, name, lambda row: row.old),
        "share_new": _share(rows, rescorer.new_names, name, lambda row: row.new),
    }


def _advantages(rows: Sequence[Rescored], groups: Sequence[Sequence[Rescored]]) -> dict[str, Any]:
    taken = [row for row in rows if row.old.included and row.new.included]
    found = (_within(members, _old_advantage, _new_advantage) for members in groups)
    ranks = [rank for rank in found if rank is not None]
    best = [(_best(members, "old"), _best(members, "new")) for members in groups]
    compared = [(a, b) for a, b in best if a and b]
    changed = [members[0].group for members, (a, b) in zip(groups, best, strict=True) if a and b and not a & b]
    return {
        "included_old": sum(row.old.included for row in rows),
        "included_new": sum(row.new.included for row in rows),
        "rank_correlation": _mean(ranks),
        "sign_changes": _mean([float(row.old.advantage * row.new.advantage < 0) for row in taken]),
        "mean_difference": _mean([abs(row.old.advantage - row.new.advantage) for row in taken]),
        "silent_groups_old": sum(not a for a, _ in best),
        "silent_groups_new": sum(not b for _, b in best),
        "compared_groups": len(compared),
        "best_changes": len(changed),
        "best_changes_share": len(changed) / len(compared) if compared else None,
        "groups_whose_best_changes": changed,
    }


def _lengths(rescorer: Rescorer, rows: Sequence[Rescored]) -> list[dict[str, Any]]:
    """Returns averages per length bucket, with equally many rollouts in each as far as equal lengths allow."""
    lengths = sorted(row.length for row in rows)
    edges = sorted({lengths[len(lengths) * place // _BUCKETS] for place in range(1, _BUCKETS)})
    starts = sorted({lengths[0], *edges})
    found = []
    for low, high in zip(starts, [*starts[1:], lengths[-1] + 1], strict=True):
        members = [row for row in rows if low <= row.length < high]
        scores = {
            name: {
                "old": _mean([v for r in members if (v := _getter(rescorer.old_names, name)(r.old)) is not None]),
                "new": _mean([v for r in members if (v := _getter(rescorer.new_names, name)(r.new)) is not None]),
            }
            for name in dict.fromkeys((*rescorer.old_names, *rescorer.new_names))
        }
        found.append(
            {
                "from": low,
                "to": high - 1,
                "rollouts": len(members),
                "advantage_old": _mean([row.old.advantage for row in members]),
                "advantage_new": _mean([row.new.advantage for row in members]),
                "components": scores,
            }
        )
    return found


def _within(
    members: Sequence[Rescored], old: Callable[[Rescored], Number], new: Callable[[Rescored], Number]
) -> Number:
    """Returns the rank correlation inside one group, over rollouts that have both values."""
    pairs = [(a, b) for row in members if (a := old(row)) is not None and (b := new(row)) is not None]
    return rank_correlation([a for a, _ in pairs], [b for _, b in pairs])


def _old_advantage(row: Rescored) -> Number:
    return row.old.advantage if row.old.included and row.new.included else None


def _new_advantage(row: Rescored) -> Number:
    return row.new.advantage if row.old.included and row.new.included else None


def _best(members: Sequence[Rescored], which: str) -> set[int]:
    """Returns the rollouts with the highest advantage; none if all are 0: nothing is learned from such a group."""
    sides: Mapping[int, Side] = {row.index: getattr(row, which) for row in members}
    found = {index: side.advantage for index, side in sides.items() if side.included}
    if not any(found.values()):
        return set()
    highest = max(found.values())
    return {index for index, advantage in found.items() if highest - advantage <= _EQUAL}


def _getter(names: Sequence[str], name: str) -> Callable[[Side], Number]:
    if name not in names:
        return lambda side: None
    place = list(names).index(name)
    return lambda side: side.scores[place]


def _share(rows: Sequence[Rescored], names: Sequence[str], name: str, side: Callable[[Rescored], Side]) -> Number:
    """Returns the component's share of the sum of |parts of advantages|."""
    if name not in names:
        return None
    place = list(names).index(name)
    total = sum(abs(part) for row in rows for part in side(row).parts)
    return sum(abs(side(row).parts[place]) for row in rows) / total if total else None


def _mean(values: Sequence[float]) -> Number:
    return sum(values) / len(values) if values else None
