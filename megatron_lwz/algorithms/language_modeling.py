"""Next-token prediction: the pretraining and supervised loss."""

from __future__ import annotations

from torch import Tensor


def language_modeling_loss(statistics: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of −log p(label) in nats, and metric sums.

    `statistics` [3, T] fp32 are (log-prob, entropy, log-sum-exp) of each label, 0 where a label is ignored; `weights`
    [T] are the labels' loss weights, 0 where ignored. Divide by the global sum of weights for the mean.
    """
    logprob, entropy, _ = statistics
    loss = -(logprob * weights).sum()
    return loss, {"entropy": (entropy * weights).sum(), "tokens": weights.sum()}
