"""Group-relative advantages (section 3.1: normalised per component inside its group, then averaged).

Shapes: P prompts, G rollouts of each, R reward components.
"""

from __future__ import annotations

from typing import Literal

import torch

Normalizer = Literal["zscore", "range", "none"]


def group_advantages(
    rewards: torch.Tensor,
    valid: torch.Tensor,
    included: torch.Tensor,
    *,
    weights: torch.Tensor,
    normalizer: Normalizer,
    combine: Literal["advantages", "rewards"],
    std_floor: float,
) -> torch.Tensor:
    """One advantage per rollout, [P, G] fp32.

    rewards, valid: [P, G, R]. An invalid score leaves its component's group statistics and the rollout's average,
        whose `weights` [R] are renormalised over the components present.
    included: [P, G] bool. An excluded rollout leaves the group statistics and gets 0.
    normalizer: zscore: (r − mean) / (std + std_floor) with the population standard deviation; range: scaled to
        [−1, 1] in the group; none: r − mean. A group of equal rewards gets exactly 0 from all three.
    combine: normalise each component, then average (advantages), or average first (rewards).
    """
    present = valid & included.unsqueeze(-1)
    rewards = rewards.double()
    if combine == "rewards":
        rewards = _average(rewards, present, weights).unsqueeze(-1)
        present = present.any(-1, keepdim=True)
        weights = weights.new_ones(1)
    normalised = _normalise(rewards, present, normalizer, std_floor)
    return _average(normalised, present, weights).float()


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


def _average(values: torch.Tensor, present: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean over the components present [P, G]; 0 where none is."""
    share = present * weights.double()
    return (values * share).sum(-1) / share.sum(-1).clamp(min=torch.finfo(torch.float64).tiny)


def _normalise(values: torch.Tensor, present: torch.Tensor, normalizer: Normalizer, std_floor: float) -> torch.Tensor:
    """Per group and component over dimension 1; 0 where absent."""
    infinite = torch.full((), torch.inf, dtype=values.dtype, device=values.device)
    lowest = values.where(present, infinite).amin(1, keepdim=True)
    span = values.where(present, -infinite).amax(1, keepdim=True) - lowest
    count = present.sum(1, keepdim=True).clamp(min=1)
    centred = values - (values * present).sum(1, keepdim=True) / count
    if normalizer == "zscore":
        std = ((centred.square() * present).sum(1, keepdim=True) / count).sqrt()
        result = centred / (std + std_floor)
    elif normalizer == "range":
        result = 2 * (values - lowest) / span - 1
    else:
        result = centred
    # Equal rewards differ from their rounded mean by an ulp, which a small std would blow up.
    return result.where(present & (span > 0), torch.zeros_like(infinite))
