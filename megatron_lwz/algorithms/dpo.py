"""Direct preference optimisation of a policy on pairs of replies (DPO, 2305.18290), from log-probs of whole replies.

P(chosen beats rejected) = σ(r_chosen − r_rejected), where r = β · (log π(y|x) − log π_ref(y|x)) is the implicit reward of
a reply. All results are sums, not means: the step divides once, by the number of pairs on all ranks. N sequences are
N / 2 pairs: 2p is the chosen reply of pair p, 2p + 1 the rejected one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lwz.algorithms.bradley_terry import wins

_AT_ONCE = 32
"""Sequences whose sums are computed together: bounds memory, which is this times the tokens."""


def sequence_sums(rows: Tensor, owners: Tensor, count: int) -> Tensor:
    """Returns [K, count]: the sum of each of the K `rows` [K, T] over the tokens of each sequence.

    `owners` [T] int64 is each token's sequence, negative for a token that counts in none. The order of the sum is
    fixed, unlike that of adding into a place on a GPU, so that a step repeats bit for bit.
    """
    sums = []
    for sequences in torch.arange(count, device=owners.device).split(_AT_ONCE):
        member = owners == sequences[:, None]
        sums.append(torch.stack([torch.where(member, row, row.new_zeros(())).sum(1) for row in rows]))
    return torch.cat(sums, 1)


def implicit_rewards(ratios: Tensor, tokens: Tensor, *, beta: float, length_normalized: bool) -> Tensor:
    """Returns the implicit reward of each reply [N], from its log-ratio to the reference and its number of tokens."""
    return beta * (ratios / tokens.clamp(min=1) if length_normalized else ratios)


def dpo_loss(
    logprobs: Tensor,
    ratios: Tensor,
    tokens: Tensor,
    *,
    beta: float,
    length_normalized: bool = False,
    sft_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns (loss summed over the present pairs, metric sums), in nats.

    `logprobs` [N] is log π(y|x) of each reply, `ratios` [N] log π(y|x) − log π_ref(y|x), `tokens` [N] the number of its
    tokens, 0 for a reply that is on another rank; both replies of a pair are on the same one. With z = r_chosen −
    r_rejected and ε = `label_smoothing`,

        loss = Σ −(1 − ε) log σ(z) − ε log σ(−z) − sft_weight · log π(chosen) / its tokens

    Metrics, without gradient: `preference_loss` (the first two terms), `accuracy` (z > 0; ties count half), `margin`
    (z), `chosen` and `rejected` (implicit rewards), and per token of a reply `chosen_logprob`, `rejected_logprob`
    (log π) and `chosen_drift`, `rejected_drift` (log π − log π_ref).
    """
    here = (tokens[0::2] > 0).to(logprobs.dtype)
    rewards = implicit_rewards(ratios, tokens, beta=beta, length_normalized=length_normalized)
    margin = rewards[0::2] - rewards[1::2]
    preference = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    means = torch.stack([logprobs, ratios]) / tokens.clamp(min=1)
    loss = (preference * here).sum()
    if sft_weight:
        loss = loss - sft_weight * (means[0, 0::2] * here).sum()
    with torch.no_grad():
        metrics = {
            "preference_loss": preference,
            "accuracy": wins(margin),
            "margin": margin,
            "chosen": rewards[0::2],
            "rejected": rewards[1::2],
            "chosen_logprob": means[0, 0::2],
            "rejected_logprob": means[0, 1::2],
            "chosen_drift": means[1, 0::2],
            "rejected_drift": means[1, 1::2],
        }
        return loss, {name: (value * here).sum() for name, value in metrics.items()}
