"""The chain-of-thought slice: thinking and answer of a run's best-rewarded rollouts as documents."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from megatron_lwz.data.corpora.spec import JournalChoice
from megatron_lwz.data.text.grammar import parse_rollout

if TYPE_CHECKING:  # the types bring torch, which preparing data does not need
    from megatron_lwz.types import Group, Prompt, Rollout


def best_rollouts(
    groups: Callable[[], Iterable[Group]], choice: JournalChoice, decode: Callable[[tuple[int, ...]], str]
) -> Iterator[str]:
    """The chosen rollouts as texts, in the journal's order.

    A rollout can be chosen when it is finished (not cut off), follows the think-and-answer form and has a valid value of
    every component that its group has (one masked for the whole group does not count). Its reward here is the mean over
    components of the value's distance from the component's mean, in standard deviations over the whole journal, so that
    no component's scale decides. `groups` is read twice.
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
