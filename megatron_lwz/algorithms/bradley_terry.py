"""Bradley–Terry on preference pairs: loss, accuracy, calibration (LongWriter-Zero, section 3.1; Bradley & Terry 1952).

P(chosen beats rejected) = σ(r_chosen − r_rejected). All results are sums, not means: the step divides once, by the
number of pairs on all ranks. N sequences are N / 2 pairs: 2p is the chosen text of pair p, 2p + 1 the rejected one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(
    scores: Tensor, present: Tensor, margins: Tensor, *, margin: float = 0.0, center: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns (loss summed over the present pairs, metric sums) of `scores` [N] fp32.

    loss = Σ −log σ(r_c − r_r − margin · m) + center · ((r_c + r_r) / 2)², with m = `margins` [N / 2]: how much better
    the chosen text is (Llama 2, 2307.09288, eq. 2), 1 where it was not annotated. The second term keeps the scores
    around 0, which the first does not determine (Eisenstein et al., 2312.09244). `present` [N / 2] bool excludes pairs
    that are on other ranks. Metrics, without gradient: `ranking_loss` (without margin and centre), `accuracy` (ties
    count half), `difference` (r_c − r_r), `chosen`, `rejected` and `squares` (r², both texts).
    """
    chosen, rejected = scores[0::2], scores[1::2]
    difference = chosen - rejected
    here = present.to(scores.dtype)
    loss = (-F.logsigmoid(difference - margin * margins) * here).sum()
    if center:
        loss = loss + center * (((chosen + rejected) / 2).square() * here).sum()
    with torch.no_grad():
        metrics = {
            "ranking_loss": -F.logsigmoid(difference),
            "accuracy": wins(difference),
            "difference": difference,
            "chosen": chosen,
            "rejected": rejected,
            "squares": chosen.square() + rejected.square(),
        }
        sums = {name: (value * here).sum() for name, value in metrics.items()}
    return loss, sums


def wins(difference: Tensor) -> Tensor:
    """Returns 1 where the chosen text leads, 0 where it trails, 1/2 at a tie. Shape and dtype as `difference`."""
    return (torch.sign(difference) + 1) / 2


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs with about the same predicted probability that the better-scored text wins."""

    low: float
    high: float
    pairs: int
    predicted: float
    """Mean of σ(|r_c − r_r|); 0 without pairs."""
    observed: float
    """Share of pairs in which the better-scored text was the chosen one; 0 without pairs."""


def calibration(differences: Sequence[float], bins: int = 10) -> tuple[list[CalibrationBin], float]:
    """Returns (bins of equal width over [0.5, 1], expected calibration error) of differences r_c − r_r.

    The model predicts p = σ(|r_c − r_r|) for the text that it scores higher. A calibrated model is right in a share p
    of such pairs. The error is the mean of |observed − predicted| over the bins, weighted by their pairs (Guo et al.,
    1706.04599).
    """
    values = torch.tensor(list(differences), dtype=torch.float64)
    said, right = torch.sigmoid(values.abs()), wins(values)
    place = ((said - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    found, error = [], 0.0
    for index in range(bins):
        inside = place == index
        count = int(inside.sum())
        predicted = float(said[inside].mean()) if count else 0.0
        observed = float(right[inside].mean()) if count else 0.0
        error += count * abs(observed - predicted)
        found.append(
            CalibrationBin(0.5 + index / (2 * bins), 0.5 + (index + 1) / (2 * bins), count, predicted, observed)
        )
    return found, error / max(1, len(values))
