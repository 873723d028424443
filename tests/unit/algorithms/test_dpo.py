"""The DPO loss of given log-probs: its formula, its options, and which pairs count."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_lwz.algorithms.dpo import dpo_loss, sequence_sums

LOGPROBS = torch.tensor([-10.0, -30.0, -8.0, -4.0])
RATIOS = torch.tensor([1.0, -2.0, 0.5, 2.0])
TOKENS = torch.tensor([5.0, 10.0, 4.0, 2.0])


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z))


def test_the_formula_of_the_paper() -> None:
    loss, metrics = dpo_loss(LOGPROBS, RATIOS, TOKENS, beta=0.1)
    assert float(loss) == pytest.approx(-log_sigmoid(0.3) - log_sigmoid(-0.15))
    found = {name: float(value) for name, value in metrics.items()}
    assert found["accuracy"] == 1.0 and found["margin"] == pytest.approx(0.15)
    assert found["chosen"] == pytest.approx(0.15) and found["rejected"] == pytest.approx(0.0, abs=1e-7)
    assert found["chosen_logprob"] == pytest.approx(-4.0) and found["rejected_logprob"] == pytest.approx(-5.0)
    assert found["chosen_drift"] == pytest.approx(0.325) and found["rejected_drift"] == pytest.approx(0.8)


def test_its_options() -> None:
    loss, metrics = dpo_loss(
        LOGPROBS, RATIOS, TOKENS, beta=2.0, length_normalized=True, sft_weight=0.5, label_smoothing=0.1
    )
    first, second = 2 * (0.2 - -0.2), 2 * (0.125 - 1.0)
    preference = sum(-0.9 * log_sigmoid(z) - 0.1 * log_sigmoid(-z) for z in (first, second))
    assert float(metrics["preference_loss"]) == pytest.approx(preference)
    assert float(loss) == pytest.approx(preference + 0.5 * (2.0 + 2.0))


def test_a_pair_of_another_rank_counts_nowhere_and_has_no_gradient() -> None:
    elsewhere = torch.tensor([5.0, 10.0, 0.0, 0.0])
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, metrics = dpo_loss(logprobs, logprobs - (LOGPROBS - RATIOS), elsewhere, beta=0.1, sft_weight=1.0)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient[2:].tolist() == [0.0, 0.0] and float(metrics["accuracy"]) == 1.0
    assert float(loss) == pytest.approx(-log_sigmoid(0.3) + 2.0)


def test_sums_take_the_tokens_of_each_sequence_alone() -> None:
    rows = torch.tensor([[1.0, 2.0, 4.0, math.nan], [1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    sums = sequence_sums(rows, torch.tensor([2, 0, 2, -1]), 3)
    assert sums.tolist() == [[2.0, 0.0, 5.0], [1.0, 0.0, 2.0]]
    (gradient,) = torch.autograd.grad(sums[0, 2], rows)
    assert gradient.tolist() == [[1.0, 0.0, 1.0, 0.0], [0.0] * 4]
