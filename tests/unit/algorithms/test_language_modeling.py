"""Next-token loss."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.algorithms.language_modeling import language_modeling_loss


def test_loss_is_the_weighted_sum_of_negative_logprobs() -> None:
    statistics = torch.tensor([[-1.0, -2.0, 0.0], [0.5, 0.25, 0.0], [3.0, 3.0, 0.0]], requires_grad=True)
    loss, metrics = language_modeling_loss(statistics, torch.tensor([1.0, 0.5, 0.0]))
    loss.backward()
    assert loss.item() == 2.0
    assert metrics["entropy"].item() == 0.625 and metrics["cross_entropy"].item() == 2.0
    assert statistics.grad is not None
    assert statistics.grad.tolist() == [[-1.0, -0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_z_loss_pulls_the_log_sum_exp_to_zero() -> None:
    statistics = torch.tensor([[-1.0, -2.0, 0.0], [0.5, 0.25, 0.0], [3.0, -2.0, 9.0]], requires_grad=True)
    loss, metrics = language_modeling_loss(statistics, torch.tensor([1.0, 0.5, 0.0]), z_loss=0.1)
    loss.backward()
    assert metrics["cross_entropy"].item() == 2.0 and metrics["z_loss"].item() == pytest.approx(0.1 * (9.0 + 2.0))
    assert loss.item() == pytest.approx(3.1)
    assert statistics.grad is not None and statistics.grad[2].tolist() == pytest.approx([0.6, -0.2, 0.0])
