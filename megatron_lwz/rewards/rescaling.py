"""Scores that multiply others instead of being averaged: the length reward (GR3), the diversity of siblings (DARLING)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from megatron_lwz.config.sections import RewardSection
from megatron_lwz.rewards.composite import rescaled_by_diversity
from megatron_lwz.rewards.diversity import DiversityComponent
from megatron_lwz.rewards.length import LengthComponent


def rescale(
    rewards: torch.Tensor, valid: torch.Tensor, names: Sequence[str], section: RewardSection
) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies `use: rescale` of `reward.diversity` and `reward.length`. Takes and returns rewards, valid [P, G, R]."""
    if section.diversity.used and section.diversity.use == "rescale":
        targets = rescaled_by_diversity(section)
        rewards, valid = rescale_by(rewards, valid, names, DiversityComponent.name, targets)
    if section.length.use == "rescale":
        rewards, valid = rescale_by(rewards, valid, names, LengthComponent.name)
    return rewards, valid


def rescale_by(
    rewards: torch.Tensor,
    valid: torch.Tensor,
    names: Sequence[str],
    name: str,
    targets: Collection[str] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiplies the components `targets` (None: all others) by the component `name`, which is then masked.

    Takes and returns rewards [P, G, R] and valid [P, G, R]. A product allows no trade-off: a good length cannot
    compensate for bad writing, nor the reverse. With s the component's score in [0, 1], r ≥ 0 becomes s·r and r < 0
    becomes (2 − s)·r, so that a low s never helps. A rollout without a valid s keeps its rewards.
    """
    place = list(names).index(name)
    scale = torch.where(valid[..., place], rewards[..., place].clamp(0, 1), 1.0).unsqueeze(-1)
    scaled = torch.where(rewards >= 0, scale * rewards, (2 - scale) * rewards)
    chosen = torch.tensor([other != name and (targets is None or other in targets) for other in names])
    others = valid.clone()
    others[..., place] = False
    return torch.where(chosen, scaled, rewards), others
