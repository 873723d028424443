"""Group-relative advantages (section 3.1: normalised per component inside its group, then averaged).

Pure functions of reward columns. `component_advantages(rewards, valid, included, *, weights, normalizer, combine,
std_floor)` returns what each component adds to each rollout's advantage. Their sum is the advantage. With a run's
config, call `orchestrator.experience.advantages_of`, which calls these functions.

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
    """Returns what each component adds to each rollout's advantage, [P, G, R] fp64.

    rewards, valid: [P, G, R]. An invalid score is excluded from its component's group statistics and from the rollout's
        average, whose `weights` [R] are renormalised over the valid components.
    included: [P, G] bool. An excluded rollout does not count in the group statistics and gets 0.
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
    """Returns what to add to advantages [P, G] so that violating rollouts get at most −margin, [P, G] fp64.

    The idea of RLMR (2508.18642): good writing must not outweigh a broken constraint. If the best violator of a group
    is above −margin, the same smallest sufficient amount is subtracted from all its violators. The group is then
    centred again, so the others gain. violates, included: [P, G] bool. A group in which every rollout violates has no
    reference to compare with. It keeps its order, and 0 is added.
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
    """Returns the share of each component in the policy gradient, per length bucket, [C, buckets] fp64, sum 1 (or 0).

    On policy, a rollout's gradient is its advantage × its loss weight × the gradient of its log-prob. The share counts
    the absolute value of the scalar factor, |contribution| × weight, not the size of the parameters' gradient.
    contributions [P, G, C]: what each component adds to the advantage. mass [P, G]: summed loss weight of the rollout's
    tokens. bucket [P, G] int64 in [0, buckets).
    """
    pushes = (contributions.double().abs() * mass.double().unsqueeze(-1)).flatten(0, 1)
    sums = pushes.new_zeros(buckets, pushes.shape[-1]).index_add_(0, bucket.flatten(), pushes).T
    return sums / sums.sum().clamp(min=torch.finfo(torch.float64).tiny)


def treat_truncated(
    rewards: torch.Tensor, truncated: torch.Tensor, *, mode: Literal["mask", "penalty", "keep"], penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rewards [P, G, R] and which rollouts take part [P, G] bool. `truncated` [P, G] bool: hit the token limit.

    mask: excluded from the loss and the group statistics; penalty: `penalty` is subtracted from every component; keep:
    unchanged.
    """
    if mode == "mask":
        return rewards, ~truncated
    if mode == "penalty":
        rewards = rewards - penalty * truncated.unsqueeze(-1)
    return rewards, torch.ones_like(truncated)


def zero_variance(advantages: torch.Tensor) -> torch.Tensor:
    """Returns [P] bool: groups with nothing to learn from, because all their advantages [P, G] are 0."""
    return (advantages == 0).all(dim=1)


def _normalise(values: torch.Tensor, present: torch.Tensor, normalizer: Normalizer, std_floor: float) -> torch.Tensor:
    """Normalises per group and component over dimension 1; 0 where absent."""
    slope, offset = _line(values, present, normalizer, std_floor)
    return ((values - _mean(values, present)) * slope + offset).where(present, values.new_zeros(()))


def _line(
    values: torch.Tensor, present: torch.Tensor, normalizer: Normalizer, std_floor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (slope, offset) of the normaliser, (value − mean) · slope + offset; both 0 in a group of equal values."""
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
    """Returns the mean of the present values over dimension 1."""
    return (values * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
