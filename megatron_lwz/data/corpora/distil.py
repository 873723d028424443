"""The chain-of-thought part of a corpus: thinking and answer of a run's best-rewarded rollouts as documents."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from megatron_lwz.data.corpora.spec import JournalChoice
from megatron_lwz.data.text.grammar import parse_rollout

if TYPE_CHECKING:  # these types import torch, which data preparation does not need
    from megatron_lwz.types import Group, Prompt, Rollout


def best_rollouts(
    groups: Callable[[], Iterable[Group]], choice: JournalChoice, decode: Callable[[tuple[int, ...]], str]
) -> Iterator[str]:
    """Yields the texts of the chosen rollouts, in the journal's order.

    A rollout can be chosen when it is finished (not truncated), follows the think-and-answer form and has a valid value
    of every reward component of its prompt group. A component that is masked for the whole group does not count.

    For the ranking, each component's value is standardised by its mean and standard deviation over the whole journal,
    so that no component's scale dominates. The reward is the mean of these values. `groups` is read twice.
    """
    rewards = _rewards(groups(), choice)
    by_group: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    for (number, index), reward in rewards.items():
        by_group[number].append((-reward, index))
    best = sorted(
        (negative, number, index)
        for number, members in by_group.items()
        for negative, index in sorted(members)[: choice.per_group]
    )
    kept = {(number, index) for _, number, index in best[: math.ceil(choice.keep * len(best))]}
    for group in groups():
        for index, rollout in enumerate(group.rollouts):
            if (group.id, index) in kept:
                prompt = decode(rollout.prompt_tokens) if choice.prompt else ""
                yield prompt + rollout.text


def _rewards(groups: Iterable[Group], choice: JournalChoice) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], dict[str, float]] = {}
    for group in groups:
        if group.admitted < choice.first_step or group.prompt.template != "think":
            continue
        valid = [{name: score.value for name, score in scores.items() if score.valid} for scores in group.scores]
        components = {name for values in valid for name in values}
        for index, (rollout, values) in enumerate(zip(group.rollouts, valid, strict=True)):
            if components and values.keys() == components and _is_whole(group.prompt, rollout):
                found[group.id, index] = values
    columns: defaultdict[str, list[float]] = defaultdict(list)
    for values in found.values():
        for name, value in values.items():
            columns[name].append(value)
    scales = {name: (fmean(column), pstdev(column) or 1.0) for name, column in columns.items()}
    return {
        key: fmean((value - scales[name][0]) / scales[name][1] for name, value in values.items())
        for key, values in found.items()
    }


def _is_whole(prompt: Prompt, rollout: Rollout) -> bool:
    return not rollout.truncated and parse_rollout(prompt, rollout).valid
