"""The pair loss against its formula, and calibration on a case worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_lwz.algorithms.bradley_terry import bradley_terry_loss, calibration, wins

SCORES = [2.0, 0.5, -1.0, 1.0, 3.0, 3.0]
MARGINS = [1.0, 2.0, 0.5]


def formula(chosen: float, rejected: float, own: float, margin: float, center: float) -> float:
    sigmoid = 1 / (1 + math.exp(-(chosen - rejected - margin * own)))
    return -math.log(sigmoid) + center * ((chosen + rejected) / 2) ** 2


@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("center", [0.0, 0.1])
def test_loss_is_the_sum_of_the_formula_over_the_pairs_present(margin: float, center: float) -> None:
    present = torch.tensor([True, False, True])
    loss, sums = bradley_terry_loss(torch.tensor(SCORES), present, torch.tensor(MARGINS), margin=margin, center=center)
    pairs = [(SCORES[0], SCORES[1], MARGINS[0]), (SCORES[4], SCORES[5], MARGINS[2])]
    assert float(loss) == pytest.approx(sum(formula(*pair, margin, center) for pair in pairs), rel=1e-6)
    assert float(sums["accuracy"]) == 1.5, "a win and a tie"
    assert float(sums["difference"]) == pytest.approx(1.5)
    assert float(sums["ranking_loss"]) == pytest.approx(sum(formula(*pair, 0.0, 0.0) for pair in pairs), rel=1e-6)


def test_gradient_pushes_the_two_texts_apart_and_leaves_absent_pairs_alone() -> None:
    scores = torch.tensor(SCORES, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([True, False, True])
    loss, _ = bradley_terry_loss(scores, present, torch.ones(3, dtype=torch.float64))
    loss.backward()
    assert scores.grad is not None
    expected = torch.sigmoid(-torch.tensor([1.5, 0.0], dtype=torch.float64))
    assert torch.allclose(scores.grad[[0, 4]], -expected) and torch.allclose(scores.grad[[1, 5]], expected)
    assert scores.grad[2:4].abs().sum() == 0


def test_large_differences_stay_finite() -> None:
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss, _ = bradley_terry_loss(scores, torch.tensor([True]), torch.ones(1))
    loss.backward()
    assert float(loss) == pytest.approx(2e4) and scores.grad is not None and torch.isfinite(scores.grad).all()


def test_wins_count_ties_half() -> None:
    assert wins(torch.tensor([2.0, -1.0, 0.0])).tolist() == [1.0, 0.0, 0.5]


def test_calibration_by_hand() -> None:
    near, far = math.log(0.55 / 0.45), math.log(0.95 / 0.05)  # said 0.55 and 0.95
    bins, error = calibration([near, near, -near, -near, far, far, far, -far], bins=5)
    assert [found.pairs for found in bins] == [4, 0, 0, 0, 4]
    assert bins[0].predicted == pytest.approx(0.55) and bins[0].observed == 0.5
    assert bins[4].predicted == pytest.approx(0.95) and bins[4].observed == 0.75
    assert error == pytest.approx((4 * 0.05 + 4 * 0.20) / 8)


def test_a_calibrated_model_has_a_small_error() -> None:
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(20_000, generator=generator, dtype=torch.float64) * 2
    right = torch.rand(20_000, generator=generator, dtype=torch.float64) < torch.sigmoid(differences.abs())
    _, error = calibration(torch.where(right, differences.abs(), -differences.abs()).tolist())
    assert error < 0.015
    assert calibration([])[1] == 0.0
