"""Closed forms of a simulated run, where there are any. The tests compare the events with them.

Staleness follows Little's law. At the beginning of every step as many groups are admitted as the step before has
trained, so `ahead` batches are always there beside the awaited one, and B groups leave per step: a group stays `ahead`
steps on average, for any law of length and any speed. Strictly in order, every group stays exactly that long.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from megatron_lwz.planner.simulation.lengths import GroupTokens
from megatron_lwz.planner.simulation.pool import Engines
from megatron_lwz.planner.simulation.setting import Setting


def staleness_in_order(step: int, staleness: int) -> int:
    """Returns the staleness of every group that `step` trains on, without over-sampling and without replaced groups."""
    return min(step - 1, staleness)


def mean_staleness(setting: Setting) -> float:
    """Returns the mean staleness of a long run, with or without over-sampling; without replaced groups."""
    return math.floor(setting.ahead * setting.batch) / setting.batch


def synchronous_rollout_seconds(setting: Setting, groups: Iterable[GroupTokens]) -> float:
    """Returns the seconds until one engine has written and scored the groups, which all begin at once.

    A decode step takes base + streams · per_stream. Summed over the steps, the first part counts the steps and the
    second one the tokens. Prefixes take no time here.
    """
    found = list(groups)
    decoding = setting.engines.decoding
    tokens = sum(group.response_tokens for group in found)
    steps = decode_steps((length for group in found for length in group.responses), setting.engines.slots)
    return decoding.base * steps + decoding.per_stream * tokens + setting.rewards


def decode_steps(lengths: Iterable[int], slots: int) -> int:
    """Returns the decode steps of one engine until it has written all responses, at most `slots` at once, in order."""
    ends = [0] * slots
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def most_tokens_per_second(engines: Engines) -> float:
    """Returns what all engines write with every slot busy: the more streams, the more tokens a decode step gives."""
    return engines.count * engines.slots / engines.decoding.step_seconds(engines.slots)


def trainer_bound(setting: Setting, tokens: float) -> float:
    """Returns the seconds of a step for which rollouts are always ready. `tokens`: of its sequences, prompts included."""
    return setting.trainer.fixed + setting.trainer.per_token * tokens + setting.sync.seconds


def engine_bound(setting: Setting, tokens: float) -> float:
    """Returns the seconds of a step whose engines always have every slot busy. `tokens`: of its responses.

    No staleness and no over-sampling makes the mean step of a long run shorter than this or `trainer_bound`.
    """
    return tokens / most_tokens_per_second(setting.engines) + setting.sync.load


def constant_length_step_seconds(setting: Setting, group: GroupTokens) -> float:
    """Returns the seconds of a step in a long run in order, all of whose groups are like this one.

    For engines with slots for all that is admitted, and decode steps that do not depend on the streams. Step s + 1 begins
    at b(s + 1) = max(b(s), b(s - k) + W) + T: T seconds of training and sync, W seconds from a batch's admission until
    it is ready, in which its streams are held by k weight syncs. In the long run the slower one of the two cycles counts.
    """
    trainer = trainer_bound(setting, setting.batch * group.tokens)
    writing = max(group.responses) * setting.engines.decoding.base + setting.rewards
    held = setting.staleness * setting.sync.load
    return max(trainer, (writing + held + trainer) / (setting.staleness + 1))
