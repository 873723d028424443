"""Groups of scored rollouts → advantages [P, G] → the flat SequenceBatch that every rank trains on (rank 0, pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_lwz.algorithms.advantages import group_advantages, treat_truncated, zero_variance
from megatron_lwz.config import Config
from megatron_lwz.rewards.composite import component_weights, score_tensors, shuffle_scores
from megatron_lwz.rewards.length import rescale_by_length
from megatron_lwz.types import Group, Rollout, SequenceBatch


@dataclass(frozen=True)
class Experience:
    """One rollout batch, ready to train on, and what is worth plotting about it."""

    batch: SequenceBatch
    metrics: dict[str, float]


def make_experience(groups: Sequence[Group], config: Config, *, names: Sequence[str], step: int) -> Experience:
    """Scores → per-component advantages → one advantage per rollout. `names` orders the reward components.

    A truncated rollout leaves its group's statistics and the loss, pays a penalty, or stays (`grpo.truncated`).
    A group without variance has no gradient; `grpo.zero_variance: drop` takes it out of the denominator too.
    """
    rewards, valid = score_tensors(groups, names)
    if config.reward.shuffle:
        rewards, valid = shuffle_scores(rewards, valid, seed=config.run.seed, step=step)
    if config.reward.length.use == "rescale":
        rewards, valid = rescale_by_length(rewards, valid, names)
    truncated = torch.tensor([[rollout.truncated for rollout in group.rollouts] for group in groups])
    rewards, included = treat_truncated(
        rewards, truncated, mode=config.grpo.truncated, penalty=config.grpo.truncation_penalty
    )
    advantages = group_advantages(
        rewards,
        valid,
        included,
        weights=component_weights(config.reward, names),
        normalizer=config.reward.normalizer,
        combine=config.reward.combine,
        std_floor=config.grpo.std_floor,
    )
    silent = zero_variance(advantages)
    weights = included.float()
    if config.grpo.zero_variance == "drop":
        weights = weights * ~silent.unsqueeze(1)
    metrics = rollout_metrics(groups, names)
    metrics["rollout/zero_variance_groups"] = silent.float().mean().item()
    metrics["rollout/trained_sequences"] = weights.sum().item()
    return Experience(flatten([r for group in groups for r in group.rollouts], advantages, weights), metrics)


def flatten(rollouts: Sequence[Rollout], advantages: torch.Tensor, weights: torch.Tensor) -> SequenceBatch:
    """Rollouts in group order, with advantages and weights [P, G], as one SequenceBatch of N = P · G sequences."""
    prompts = torch.tensor([len(rollout.prompt_tokens) for rollout in rollouts])
    lengths = prompts + torch.tensor([len(rollout.tokens) for rollout in rollouts])
    tokens = [token for rollout in rollouts for token in (*rollout.prompt_tokens, *rollout.tokens)]
    logprobs = [value for r in rollouts for value in (*[0.0] * len(r.prompt_tokens), *r.logprobs)]
    return SequenceBatch(
        tokens=torch.tensor(tokens, dtype=torch.int64),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=prompts,
        behaviour_logprobs=torch.tensor(logprobs, dtype=torch.float32),
        advantages=advantages.reshape(-1).float(),
        weights=weights.reshape(-1).float(),
    )


_DETAILS = {
    "format_valid": ("format", "valid"),
    "near_duplicates": ("format", "duplicates"),
    "length_in_range": ("length", "in_range"),
    "rollout/mean_length_units": ("length", "words"),
    "rollout/think_length": ("format", "think_length"),
    "rollout/think_length_tokens": ("format", "think_tokens"),
}
"""Metric name → (reward component, detail of its score)."""


def rollout_metrics(groups: Sequence[Group], names: Sequence[str]) -> dict[str, float]:
    """Means over the rollouts. Lengths are in tokens, `_units` and `think_length` in the length reward's unit."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scores = [score for group in groups for score in group.scores]
    metrics = {
        "rollout/mean_length": _mean([len(r.tokens) for r in rollouts]),
        "rollout/mean_length_untruncated": _mean([len(r.tokens) for r in rollouts if not r.truncated]),
        "rollout/truncated": _mean([r.truncated for r in rollouts]),
        "rollout/tokens": float(sum(len(r.tokens) for r in rollouts)),
    }
    for name in names:
        found = [score[name] for score in scores if name in score]
        metrics[f"reward/{name}"] = _mean([score.value for score in found if score.valid])
        metrics[f"reward_masked/{name}"] = _mean([not score.valid for score in found])
    for metric, (name, detail) in _DETAILS.items():
        values = [s[name].details[detail] for s in scores if name in s and detail in s[name].details]
        if values:
            metrics[metric] = _mean(values)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
