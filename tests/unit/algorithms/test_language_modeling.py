"""Next-token loss."""

from __future__ import annotations

import torch

from megatron_lwz.algorithms.language_modeling import language_modeling_loss


def test_loss_is_the_weighted_sum_of_negative_logprobs() -> None:
    statistics = torch.tensor([[-1.0, -2.0, 0.0], [0.5, 0.25, 0.0], [3.0, 3.0, 0.0]], requires_grad=True)
    loss, metrics = language_modeling_loss(statistics, torch.tensor([1.0, 0.5, 0.0]))
    loss.backward()
    assert loss.item() == 2.0
    assert metrics["entropy"].item() == 0.625 and metrics["tokens"].item() == 1.5
    assert statistics.grad is not None
    assert statistics.grad.tolist() == [[-1.0, -0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
