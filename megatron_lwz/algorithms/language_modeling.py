"""Next-token prediction: the pretraining and supervised loss."""

from __future__ import annotations

from torch import Tensor


def language_modeling_loss(
    statistics: Tensor, weights: Tensor, *, z_loss: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the weighted sum of −log p(label) + `z_loss` · lse², and metric sums, in nats.

    `statistics` [3, T] fp32 are (log-prob, entropy, log-sum-exp) of each label, 0 where a label is ignored. `weights`
    [T] are the labels' loss weights, 0 where ignored. The z-loss (PaLM, arXiv 2204.02311, section 5) keeps the
    softmax's normaliser near 1. Divide by the step's denominator for the mean.
    """
    logprob, entropy, lse = statistics
    cross_entropy = -(logprob * weights).sum()
    metrics = {"cross_entropy": cross_entropy, "entropy": (entropy * weights).sum()}
    if z_loss == 0.0:
        return cross_entropy, metrics
    metrics["z_loss"] = z_loss * (lse.square() * weights).sum()
    return cross_entropy + metrics["z_loss"], metrics
