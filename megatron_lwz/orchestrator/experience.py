"""Groups of scored rollouts → advantages [P, G] → the flat SequenceBatch that every rank trains on (rank 0, pure).

`advantages_of(rewards, valid, truncated, config, *, names) -> Advantages` computes advantages from reward columns under
a config. It does not depend on a run, so stored rollouts can be evaluated under another config. `group_advantages` does
the same for scored groups.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from megatron_lwz.algorithms.advantages import (
    component_advantages,
    gradient_shares,
    push_violators,
    treat_truncated,
    zero_variance,
)
from megatron_lwz.config import Config
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.data.text.sameness import sameness
from megatron_lwz.rewards.advantage_function import function_advantages
from megatron_lwz.rewards.composite import (
    component_normalizers,
    component_weights,
    find_violators,
    score_tensors,
    shuffle_scores,
)
from megatron_lwz.rewards.rescaling import rescale
from megatron_lwz.rollout.guard import guard_metrics
from megatron_lwz.rollout.journal import AdvantageRecord
from megatron_lwz.types import Group, RewardColumns, Rollout, SequenceBatch

VIOLATORS = "violators"
"""Name, next to the components' names, of what `reward.violators` adds to the advantages."""


@dataclass(frozen=True)
class Experience:
    """One rollout batch, or a part of it, ready to train on, and its metrics."""

    batch: SequenceBatch
    metrics: dict[str, float]
    """Metrics of the whole rollout batch. They come with its last part; earlier parts have none."""
    last: bool = True
    """Whether this completes the rollout batch."""
    rollouts: list[str] = field(default_factory=list)
    """Ids of the batch's sequences, in its order."""


@dataclass(frozen=True)
class Advantages:
    """Advantages of P prompts with G rollouts each. `parts[..., c]` is what `names[c]` adds to `total`."""

    total: torch.Tensor
    """[P, G] fp32: the advantages."""
    parts: torch.Tensor
    """[P, G, C] fp64: the contribution of each name."""
    names: tuple[str, ...]
    """C names: the reward components, then VIOLATORS if `reward.violators` holds a rule.

    If a `reward.advantage_function` gives one number per rollout, one name replaces the components' names.
    """
    included: torch.Tensor
    """[P, G] bool: the rollouts that take part at all."""
    violates: torch.Tensor
    """[P, G] bool: the rollouts that break a rule of `reward.violators`."""


def advantages_of(
    rewards: torch.Tensor,
    valid: torch.Tensor,
    truncated: torch.Tensor,
    config: Config,
    *,
    names: Sequence[str],
    prompts: Sequence[str] | None = None,
) -> Advantages:
    """Computes advantages from reward columns, following sections `reward` and `grpo` of the config.

    rewards [P, G, R] fp32, valid [P, G, R] bool, truncated [P, G] bool (hit the token limit). `names` orders the R
    components and must match the config's. A truncated rollout is excluded from its group's statistics, gets a penalty,
    or is kept unchanged (`grpo.truncated`). Rules of `reward.violators` read the scores before any penalty or
    rescaling. `prompts` are the P prompts' ids, which errors use to name groups. Raises ConfigError for a
    `reward.advantage_function` that fails.
    """
    reward, grpo = config.reward, config.grpo
    violates = find_violators(rewards, valid, names, reward)
    rewards, valid = rescale(rewards, valid, names, reward)
    rewards, included = treat_truncated(rewards, truncated, mode=grpo.truncated, penalty=grpo.truncation_penalty)
    weights, columns = component_weights(reward, names), tuple(names)
    if reward.advantage_function is not None:
        given = RewardColumns(rewards.double(), valid, included, truncated, columns, weights.double())
        prompts = [f"number {place}" for place in range(len(rewards))] if prompts is None else prompts
        parts, columns = function_advantages(reward.advantage_function, given, prompts=prompts)
    else:
        parts = component_advantages(
            rewards,
            valid,
            included,
            weights=weights,
            normalizer=component_normalizers(reward, names),
            combine=reward.combine,
            std_floor=grpo.std_floor,
        )
    if reward.violators:
        push = push_violators(parts.sum(-1), violates, included, reward.violator_margin)
        parts, columns = torch.cat([parts, push.unsqueeze(-1)], -1), (*columns, VIOLATORS)
    return Advantages(parts.sum(-1).float(), parts, columns, included, violates & included)


def group_advantages(
    groups: Sequence[Group],
    config: Config,
    *,
    names: Sequence[str],
    scores: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Advantages:
    """Computes the advantages of groups from their own scores, or from `scores`.

    `scores` is (rewards, valid) as `score_tensors` returns them.
    """
    rewards, valid = score_tensors(groups, names) if scores is None else scores
    truncated = torch.tensor([[rollout.truncated for rollout in group.rollouts] for group in groups])
    prompts = [group.prompt.id for group in groups]
    return advantages_of(rewards, valid, truncated, config, names=names, prompts=prompts)


def make_batch(groups: Sequence[Group], config: Config, *, names: Sequence[str], step: int) -> SequenceBatch:
    """Computes component advantages and one advantage per rollout, and builds the batch. `names` orders the components.

    A group without variance has no gradient; unless `grpo.zero_variance` is keep, it does not count in the denominator
    either. Groups do not depend on each other (except under `reward.shuffle`), so a rollout batch may come in parts.
    """
    found, weights, _ = weigh(groups, config, names, step)
    return batch_of(groups, found, weights)


def batch_of(groups: Sequence[Group], found: Advantages, weights: torch.Tensor) -> SequenceBatch:
    """Builds the batch of groups that `weigh` has weighed."""
    return flatten([rollout for group in groups for rollout in group.rollouts], found.total, weights)


def advantage_records(found: Advantages) -> list[list[AdvantageRecord]]:
    """Returns, by group and rollout, the advantage and what each name adds to it, for `Journal.note_advantages`."""
    return [
        [(value, dict(zip(found.names, parts, strict=True))) for value, parts in zip(totals, rows, strict=True)]
        for totals, rows in zip(found.total.tolist(), found.parts.tolist(), strict=True)
    ]


def rollout_ids(groups: Sequence[Group]) -> list[str]:
    """Returns the ids of the sequences of `make_batch`, in its order."""
    return [rollout.id for group in groups for rollout in group.rollouts]


def experience_metrics(groups: Sequence[Group], config: Config, *, names: Sequence[str], step: int) -> dict[str, float]:
    """Returns the metrics of a whole rollout batch."""
    found, weights, valid = weigh(groups, config, names, step)
    metrics = rollout_metrics(groups, names) | staleness_metrics(groups, step)
    metrics["rollout/zero_variance_groups"] = zero_variance(found.total).float().mean().item()
    metrics["rollout/trained_sequences"] = weights.sum().item()
    metrics |= {
        f"rollout/masked_groups/{name}": float((~valid[..., place]).all(1).sum()) for place, name in enumerate(names)
    }
    if config.reward.violators:
        metrics["rollout/violators"] = found.violates.float().mean().item()
    metrics |= guard_metrics(groups, config.rollout.guard, config.rollout.max_new_tokens) | sameness_metrics(groups)
    return metrics | gradient_metrics(groups, found, weights, config)


def weigh(
    groups: Sequence[Group], config: Config, names: Sequence[str], step: int
) -> tuple[Advantages, torch.Tensor, torch.Tensor]:
    """Returns the advantages, the rollouts' loss weights [P, G] fp32, and which scores are valid [P, G, R] bool."""
    rewards, valid = score_tensors(groups, names)
    if config.reward.shuffle:
        rewards, valid = shuffle_scores(rewards, valid, seed=config.run.seed, step=step)
    found = group_advantages(groups, config, names=names, scores=(rewards, valid))
    weights = found.included.float()
    if config.grpo.zero_variance != "keep":
        weights = weights * ~zero_variance(found.total).unsqueeze(1)
    return found, weights, valid


def is_barren(group: Group, config: Config, *, names: Sequence[str]) -> bool:
    """Whether nothing can be learned from this group because all its advantages are 0."""
    return bool(zero_variance(group_advantages([group], config, names=names).total))


def sameness_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Returns `rollout/sameness`, how far the answers of a group use the same words, 0 to 1: mean over the groups.

    A response without an answer counts as a whole. Groups of one rollout have no such number; empty without any other.
    """
    values = []
    for group in groups:
        parsed = [parse_rollout(group.prompt, rollout).answer for rollout in group.rollouts]
        texts = [r.text if answer is None else answer for r, answer in zip(group.rollouts, parsed, strict=True)]
        values.append(sameness(texts))
    known = [value for value in values if value is not None]
    return {"rollout/sameness": _mean(known)} if known else {}


def staleness_metrics(groups: Sequence[Group], step: int) -> dict[str, float]:
    """Returns how old the data that step `step` trains on is, in steps.

    `rollout/staleness`: from a group's admission to its training. `rollout/token_staleness`: from the weights that
    generated a token to the weights that are trained, mean over tokens. `rollout/mixed`: share of rollouts that were
    generated by more than one weight version.
    """
    waits = [float(step - group.admitted) for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lags, tokens = 0, 0
    for rollout in rollouts:
        starts = [*(segment.start for segment in rollout.versions), len(rollout.tokens)]
        for segment, end in zip(rollout.versions, starts[1:], strict=True):
            lags += (step - 1 - segment.version.step) * (end - segment.start)
        tokens += len(rollout.tokens)
    return {
        "rollout/staleness": _mean(waits),
        "rollout/staleness/max": max(waits),
        "rollout/token_staleness": lags / max(1, tokens),
        "rollout/mixed": _mean([len(rollout.versions) > 1 for rollout in rollouts]),
    }


def gradient_metrics(
    groups: Sequence[Group], found: Advantages, weights: torch.Tensor, config: Config
) -> dict[str, float]:
    """Returns shares of the policy gradient (`gradient_shares`) over all rollouts of the step. They sum to 1.

    `gradient/<component>`, `gradient_length/<from>-<to>` in response tokens, `gradient/<component>/<from>-<to>` for
    both. weights [P, G]: the rollouts' loss weights.
    """
    limit = config.rollout.max_new_tokens
    edges = sorted(config.logging.length_buckets) or [limit // 4, limit // 2, 3 * limit // 4]
    starts = [0, *edges]
    titles = [f"{start}-{end}" for start, end in zip(starts, [*edges, "more"], strict=True)]
    if not config.logging.length_buckets:
        titles[-1] = f"{starts[-1]}-{limit}"
    lengths = torch.tensor([[len(rollout.tokens) for rollout in group.rollouts] for group in groups])
    bucket = torch.tensor([[bisect_left(edges, len(r.tokens)) for r in group.rollouts] for group in groups])
    mass = weights * (lengths > 0) if config.grpo.aggregation == "sequence" else weights * lengths
    shares = gradient_shares(found.parts, mass, bucket, len(titles))
    metrics = {f"gradient/{name}": share for name, share in zip(found.names, shares.sum(1).tolist(), strict=True)}
    metrics |= {f"gradient_length/{title}": share for title, share in zip(titles, shares.sum(0).tolist(), strict=True)}
    for name, row in zip(found.names, shares.tolist(), strict=True):
        metrics |= {f"gradient/{name}/{title}": share for title, share in zip(titles, row, strict=True)}
    return metrics


def flatten(rollouts: Sequence[Rollout], advantages: torch.Tensor, weights: torch.Tensor) -> SequenceBatch:
    """Makes one SequenceBatch of N = P · G sequences from rollouts in group order, with advantages, weights [P, G]."""
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
    "copied": ("format", "copied"),
    "length_in_range": ("length", "in_range"),
    "rollout/contradictions": ("consistency", "contradictions"),
    "rollout/continuation_gain": ("continuation", "percent"),
    "rollout/mean_length_units": ("length", "words"),
    "rollout/think_length": ("format", "think_length"),
    "rollout/think_length_tokens": ("format", "think_tokens"),
}
"""Metric name → (reward component, detail of its score)."""


def rollout_metrics(groups: Sequence[Group], names: Sequence[str]) -> dict[str, float]:
    """Returns means over the rollouts.

    Lengths are in tokens; `_units` and `think_length` in the length reward's unit.
    """
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
