"""Group-relative advantages (section 3.1: normalised per component inside its group, then averaged).

Pure functions of reward columns: `component_advantages(rewards, valid, included, *, weights, normalizer, combine,
std_floor)` gives what each component adds to each rollout's advantage; their sum is the advantage. With a run's config
in hand, `orchestrator.experience.advantages_of` calls them.

Shapes: P prompts, G rollouts of each, R reward components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from megatron_lwz.config.base import Normalizer


def component_advantages(
    rewards: torch.Tensor,
    valid: torch.Tensor,
    included: torch.Tensor,
    *,
    weights: torch.Tensor,
    normalizer: Normalizer | Sequence[Normalizer],
    combine: Literal["advantages", "rewards"],
    std_floor: float,
) -> torch.Tensor:
    """What each component adds to each rollout's advantage, [P, G, R] fp64.

    rewards, valid: [P, G, R]. An invalid score leaves its component's group statistics and the rollout's average,
        whose `weights` [R] are renormalised over the components present.
    included: [P, G] bool. An excluded rollout leaves the group statistics and gets 0.
    normalizer: zscore: (r − mean) / (std + std_floor) with the population standard deviation; range: scaled to
        [−1, 1] in the group; none: r − mean. A group of equal rewards gets exactly 0 from all three. With
        combine advantages it may be a sequence, one for each component.
    combine: normalise each component, then average (advantages), or average first (rewards).
    """
    present = valid & included.unsqueeze(-1)
    rewards = rewards.double()
    share = present * weights.double()
    share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    if combine == "advantages":
        kinds = [normalizer] * rewards.shape[-1] if isinstance(normalizer, str) else normalizer
        columns = zip(rewards.split(1, -1), present.split(1, -1), kinds, strict=True)
        normalised = [_normalise(column, there, kind, std_floor) for column, there, kind in columns]
        return torch.cat(normalised, -1) * share
    if not isinstance(normalizer, str):
        raise ValueError("rewards that are averaged first are normalised once: give one normalizer")
    parts = rewards * share
    counted = present.any(-1, keepdim=True)
    slope, offset = _line(parts.sum(-1, keepdim=True), counted, normalizer, std_floor)
    return ((parts - _mean(parts, counted)) * slope + share * offset) * counted


def push_violators(
    advantages: torch.Tensor, violates: torch.Tensor, included: torch.Tensor, margin: float
) -> torch.Tensor:
    """What to add to advantages [P, G] so that rollouts that break a rule get at most −margin, [P, G] fp64.

    The idea of RLMR (2508.18642): good writing must not outweigh a broken constraint. Where the best violator of a group is
    above −margin, all its violators lose the same smallest amount that brings it there, and the group is centred anew, so the
    others gain. violates, included: [P, G] bool. A group in which every rollout violates has nothing to be measured
    against: it keeps its order, and 0 is added.
    """
    advantages = advantages.double()
    broken = violates & included
    count = included.sum(1, keepdim=True).clamp(min=1)
    kept = (included & ~broken).sum(1, keepdim=True)
    mean = (advantages * included).sum(1, keepdim=True) / count
    best = advantages.where(broken, advantages.new_tensor(-torch.inf)).amax(1, keepdim=True)
    needed = broken.any(1, keepdim=True) & (kept > 0) & (best > -margin)
    loss = ((best - mean + margin) * count / kept.clamp(min=1)).clamp(min=0)
    centre = mean - loss * broken.sum(1, keepdim=True) / count
    return (-loss * broken - centre).where(needed & included, advantages.new_zeros(()))


def gradient_shares(
    contributions: torch.Tensor, mass: torch.Tensor, bucket: torch.Tensor, buckets: int
) -> torch.Tensor:
    """How much of the policy gradient each component carries in each length bucket, [C, buckets] fp64, sum 1 (or 0).

    On policy a rollout's gradient is its advantage × its loss weight × the gradient of its log-prob. Counted here is the
    scalar factor in absolute value, |contribution| × weight: the size of the push, not of the parameters' gradient.
    contributions [P, G, C]: what each component adds to the advantage. mass [P, G]: summed loss weight of the rollout's tokens.
    bucket [P, G] int64 in [0, buckets).
    """
    pushes = (contributions.double().abs() * mass.double().unsqueeze(-1)).flatten(0, 1)
    sums = pushes.new_zeros(buckets, pushes.shape[-1]).index_add_(0, bucket.flatten(), pushes).T
    return sums / sums.sum().clamp(min=torch.finfo(torch.float64).tiny)


def treat_truncated(
    rewards: torch.Tensor, truncated: torch.Tensor, *, mode: Literal["mask", "penalty", "keep"], penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards [P, G, R] and which rollouts take part [P, G] bool, given which hit the token limit [P, G] bool.

    mask: out of the loss and the group statistics; penalty: every component loses `penalty`; keep: as they are.
    """
    if mode == "mask":
        return rewards, ~truncated
    if mode == "penalty":
        rewards = rewards - penalty * truncated.unsqueeze(-1)
    return rewards, torch.ones_like(truncated)


def zero_variance(advantages: torch.Tensor) -> torch.Tensor:
    """[P] bool: groups with nothing to learn from, all of whose advantages [P, G] are 0."""
    return (advantages == 0).all(dim=1)


def _normalise(values: torch.Tensor, present: torch.Tensor, normalizer: Normalizer, std_floor: float) -> torch.Tensor:
    """Per group and component over dimension 1; 0 where absent."""
    slope, offset = _line(values, present, normalizer, std_floor)
    return ((values - _mean(values, present)) * slope + offset).where(present, values.new_zeros(()))


def _line(
    values: torch.Tensor, present: torch.Tensor, normalizer: Normalizer, std_floor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(slope, offset) of the normaliser, (value − mean) · slope + offset; both 0 in a group of equal values."""
    infinite = values.new_tensor(torch.inf)
    lowest = values.where(present, infinite).amin(1, keepdim=True)
    span = values.where(present, -infinite).amax(1, keepdim=True) - lowest
    mean = _mean(values, present)
    if normalizer == "zscore":
        count = present.sum(1, keepdim=True).clamp(min=1)
        variance = ((values - mean).square() * present).sum(1, keepdim=True) / count
        slope, offset = 1 / (variance.sqrt() + std_floor), torch.zeros_like(mean)
    elif normalizer == "range":
        slope, offset = 2 / span, 2 * (mean - lowest) / span - 1
    else:
        slope, offset = torch.ones_like(mean), torch.zeros_like(mean)
    # Equal rewards differ from their rounded mean by an ulp, which a small std would blow up.
    unequal = span > 0
    return slope.where(unequal, values.new_zeros(())), offset.where(unequal, values.new_zeros(()))


def _mean(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Over dimension 1, of what is present."""
    return (values * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
