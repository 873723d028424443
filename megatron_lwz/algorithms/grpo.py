"""The GRPO loss on per-token quantities, as sums: the caller divides by one global denominator.

Four log-probs of a token differ: the *policy* being trained, *old* (the trainer's own, before this batch's updates),
*behaviour* (the engine's, when it sampled) and the *reference*. Ratios, clips and KL act on policy / old; the
mismatch weight corrects old / behaviour.

Metrics are sums over tokens with weight > 0; `tokens` counts them, and every mean is sum / tokens. A name ending in
`/max` is a maximum and is max-reduced. `average_metrics` applies both rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.types import SequenceBatch

MAX_SUFFIX = "/max"
_LOG_RATIO_LIMIT = 20.0
"""Bound on |log p − log q| before exp: far beyond every clip, and finite in fp32."""

ContextSum = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LossInputs:
    """Per-token tensors of one packed micro-batch (this rank's context-parallel share), all [T] fp32 except the ids."""

    logprob: torch.Tensor
    """Log-prob of the policy, ln p(token) at the sampling temperature; carries gradient."""
    entropy: torch.Tensor
    """Entropy of the policy's full softmax, in nats; carries gradient."""
    old: torch.Tensor
    """The trainer's log-prob before this batch's updates; with one update per batch this is `logprob.detach()`."""
    behaviour: torch.Tensor
    """The engine's log-prob, when it sampled the token."""
    reference: torch.Tensor | None
    """The reference model's log-prob; None when the KL coefficient is 0."""
    advantage: torch.Tensor
    """Advantage of the token's sequence; with reward-side KL, that token's KL is subtracted."""
    weight: torch.Tensor
    """Loss weight ≥ 0 (`token_weights`), constant in a sequence; 0 on prompt tokens, padding and dropped sequences."""
    sequence_ids: torch.Tensor
    """Id of each token's sequence, int64; −1 on padding."""
    sequences: int
    """Exclusive upper bound of the ids, the same on all context-parallel ranks (N of the SequenceBatch)."""


class SequenceMean:
    """Mean over the weighted tokens of each token's sequence, over all context-parallel ranks.

    Every rank must call it the same number of times. It is differentiable if `context_sum` is.
    """

    def __init__(self, inputs: LossInputs, context_sum: ContextSum) -> None:
        self._ids = inputs.sequence_ids.clamp(min=0)
        self._used = (inputs.weight > 0).to(inputs.old.dtype)
        self._inputs, self._context_sum = inputs, context_sum

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the mean of each token's sequence [T] for values [T]."""
        zeros = values.new_zeros(2, self._inputs.sequences)
        sums = zeros.index_add(1, self._ids, torch.stack([values * self._used, self._used]))
        total, count = self._context_sum(sums)
        return (total / count.clamp(min=1))[self._ids]


PolicyLoss = Callable[[LossInputs, GrpoSection, ContextSum], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""Returns (loss per token [T], any value where the weight is 0; metric sums). See `algorithms/loss_function.py`."""


def token_weights(batch: SequenceBatch, section: GrpoSection) -> tuple[torch.Tensor, int]:
    """Returns every token's loss weight [sum of lengths] fp32, and the batch's part of the global denominator.

    `grpo.aggregation` sets both; a sequence of weight 0 counts in neither. token: Σ over tokens / tokens; sequence: mean
    over sequences of token means; constant: Σ over tokens / constant_length / sequences. The weights do not include the
    denominator, so a batch may come in parts, whose counts are added (0 where nothing is kept).
    """
    lengths = batch.offsets[1:] - batch.offsets[:-1]
    written = lengths - batch.prompt_lengths
    kept = (batch.weights > 0) & (written > 0)
    divisor, denominator = torch.ones_like(batch.weights), int(kept.sum())
    if section.aggregation == "token":
        denominator = int(written[kept].sum())
    elif section.aggregation == "sequence":
        divisor = written.clamp(min=1)
    else:
        divisor = divisor * section.constant_length
    position = torch.arange(len(batch.tokens)) - batch.offsets[:-1].repeat_interleave(lengths)
    response = position >= batch.prompt_lengths.repeat_interleave(lengths)
    return (kept * batch.weights / divisor).repeat_interleave(lengths) * response, denominator


def grpo_loss(
    inputs: LossInputs, section: GrpoSection, *, context_sum: ContextSum, policy_loss: PolicyLoss | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns (Σ weight · token loss, metric sums): the policy loss with its corrections.

    `context_sum` adds a [2, N] tensor over context-parallel ranks (identity without them). It is called only for
    sequence-level means, the same number of times on every rank. `policy_loss` replaces the built-in objective; only it
    may need the sum's gradient.
    """
    mean = SequenceMean(inputs, context_sum)
    ratio = policy_ratio(inputs, section, mean)
    correction, kept = mismatch_weight(inputs, section, mean)
    if section.kl_coefficient and section.kl_placement == "reward":
        lowered = advantage_after_kl(inputs.advantage, inputs.old, _reference(inputs), section.kl_coefficient)
        inputs = replace(inputs, advantage=lowered)

    if policy_loss is None:
        loss, objective_metrics = _objective(inputs, section, ratio)
    else:
        loss, objective_metrics = policy_loss(inputs, section, context_sum)
    loss = loss * correction
    if section.kl_coefficient and section.kl_placement == "loss":
        loss = loss + section.kl_coefficient * kl_term(inputs, section, correction)
    if section.entropy_coefficient:
        loss = loss - section.entropy_coefficient * inputs.entropy
    metrics = _metrics(inputs, ratio.detach(), correction, kept) | objective_metrics
    return (loss * inputs.weight).where(inputs.weight > 0, loss.new_zeros(())).sum(), metrics


def _objective(
    inputs: LossInputs, section: GrpoSection, ratio: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the policy loss per token [T], and metrics that count the tokens on which the clip acts.

    clip: max(−r·A, −clip(r)·A), with dual clip for negative A; tokens whose loss is the clipped one get no gradient.
    cispo: −sg(clip(r))·A·log policy (2506.13585, eq. 4 and 5); every token gets a gradient, of bounded weight.
    """
    advantage, low, high = inputs.advantage, 1 - section.clip_low, 1 + section.clip_high
    below, above = ratio < low, ratio > high
    if section.objective == "cispo":
        loss = -ratio.detach().clamp(low, high) * advantage * inputs.logprob
    else:
        loss = torch.maximum(-ratio * advantage, -ratio.clamp(low, high) * advantage)
        if section.dual_clip is not None:
            loss = torch.where(advantage < 0, torch.minimum(loss, -section.dual_clip * advantage), loss)
        below, above = below & (advantage < 0), above & (advantage > 0)
    return loss, {"clip_fraction_low": _count(inputs, below), "clip_fraction_high": _count(inputs, above)}


def policy_ratio(inputs: LossInputs, section: GrpoSection, mean: SequenceMean) -> torch.Tensor:
    """Returns the probability ratio policy / old [T], per token or as the sequence's geometric mean.

    The sequence ratio (GSPO, 2507.18071, its token form) has the value of the geometric mean and the gradient of the
    token's own log-prob. Weights are constant in a sequence, so the summed gradient is that of the sequence objective.
    No gradient has to cross context-parallel ranks.
    """
    log_ratio = _difference(inputs.logprob, inputs.old)
    if section.ratio == "sequence":
        log_ratio = mean(log_ratio.detach()) + (inputs.logprob - inputs.logprob.detach())
    return log_ratio.exp()


def mismatch_weight(inputs: LossInputs, section: GrpoSection, mean: SequenceMean) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the importance weight old / behaviour [T], without gradient, and which tokens it left unchanged [T] bool.

    The weight is per token or the sequence's geometric mean. truncate: min(w, C); mask: w inside [1/C, C], else 0.
    """
    if section.mismatch == "none":
        return torch.ones_like(inputs.old), torch.ones_like(inputs.old, dtype=torch.bool)
    log_weight = _difference(inputs.old, inputs.behaviour).detach()
    weight = (mean(log_weight) if section.mismatch == "sequence" else log_weight).exp()
    if section.mismatch_mode == "truncate":
        return weight.clamp(max=section.mismatch_cap), weight <= section.mismatch_cap
    kept = (weight <= section.mismatch_cap) & (weight >= 1 / section.mismatch_cap)
    return weight * kept, kept


def kl_term(inputs: LossInputs, section: GrpoSection, correction: torch.Tensor) -> torch.Tensor:
    """Returns KL(policy ‖ reference) per token [T], for the loss (http://joschu.net/blog/kl-approx.html).

    k2 = d²/2, k3 = e^−d − 1 + d, with d = log policy − log reference. With `kl_importance` the term is weighted by
    policy / old and by the mismatch correction, since the tokens came from the behaviour policy. Its expected gradient
    is then that of the reverse KL: for k3 the weight carries gradient, for k2 it must not.
    """
    difference = _difference(inputs.logprob, _reference(inputs))
    estimate = difference.square() / 2 if section.kl_estimator == "k2" else k3(difference)
    if not section.kl_importance:
        return estimate
    importance = _difference(inputs.logprob, inputs.old).exp()
    return correction * (importance.detach() if section.kl_estimator == "k2" else importance) * estimate


def k3(difference: torch.Tensor) -> torch.Tensor:
    """Returns e^−d − 1 + d ≥ 0. With d = log p − log q at samples of p, it is an unbiased estimate of KL(p ‖ q)."""
    return torch.expm1(-difference) + difference


def advantage_after_kl(
    advantage: torch.Tensor, old: torch.Tensor, reference: torch.Tensor, coefficient: float
) -> torch.Tensor:
    """Reward-side KL: returns each token's advantage [T] minus coefficient · (log old − log reference), its k1."""
    return advantage - coefficient * (old - reference).detach()


def average_metrics(totals: Mapping[str, float]) -> dict[str, float]:
    """Converts reduced metric sums to means per token. Maxima and `tokens` are returned unchanged."""
    tokens = max(1.0, totals["tokens"])
    return {k: v if k == "tokens" or k.endswith(MAX_SUFFIX) else v / tokens for k, v in totals.items()}


def _difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)


def _reference(inputs: LossInputs) -> torch.Tensor:
    if inputs.reference is None:
        raise ValueError("a KL coefficient above 0 needs the reference model's log-probs")
    return inputs.reference


def _count(inputs: LossInputs, flags: torch.Tensor) -> torch.Tensor:
    return (flags & (inputs.weight > 0)).sum().float()


@torch.no_grad()
def _metrics(
    inputs: LossInputs, ratio: torch.Tensor, correction: torch.Tensor, kept: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Returns the metrics. `kl` is to the reference or, without one, between old and policy.

    `mismatch/kl` is between engine and old.
    """
    used = inputs.weight > 0
    mismatch = _difference(inputs.old, inputs.behaviour)
    if inputs.reference is None:
        kl = k3(_difference(inputs.old, inputs.logprob))
    else:
        kl = k3(_difference(inputs.logprob, inputs.reference))

    def total(values: torch.Tensor) -> torch.Tensor:
        return values.where(used, values.new_zeros(())).sum()

    def largest(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[used], values.new_zeros(1)]).amax()

    return {
        "tokens": used.sum().float(),
        "entropy": total(inputs.entropy),
        "kl": total(kl),
        "ratio": total(ratio),
        "ratio/max": largest(ratio),
        "mismatch/kl": total(k3(-mismatch)),
        "mismatch/weight": total(correction),
        "mismatch/clipped": total((~kept).float()),
        "mismatch/difference": total(mismatch.abs()),
        "mismatch/difference/max": largest(mismatch.abs()),
    }
