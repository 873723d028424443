"""Logits stored in bf16 around a shift, through the interpreter. Run by test_triton_shifted, in its own process."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients, combine, empty_statistics
from megatron_lwz.kernels.linear_logprob.triton_shifted import shifted_gradient, shifted_statistics
from tests.support.triton_epilogue_checks import exact_gradient

TOKENS, HIDDEN = 80, 64
TEMPERATURE = 0.9


def problem(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits z [n, v] fp64 as large as a trained model's, labels drawn from their softmax, the exact lse and a shift."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, HIDDEN, generator=generator, dtype=torch.float64) * 0.5
    z = hidden @ weight.t() + 20.0
    labels = torch.multinomial((z / TEMPERATURE).softmax(1), 1, generator=generator)[:, 0]
    drift = torch.randn(TOKENS, generator=generator) * 0.3  # the earlier pass had slightly different weights
    shift = (torch.logsumexp(z / TEMPERATURE, 1) * TEMPERATURE + drift).bfloat16()
    return z, labels, torch.logsumexp(z / TEMPERATURE, 1), shift


def measured(zt: torch.Tensor, shift: torch.Tensor, z: torch.Tensor, labels: torch.Tensor, tiles: int) -> torch.Tensor:
    running = empty_statistics(TOKENS, dtype=torch.float32, device=zt.device)
    for tile in zt.tensor_split(tiles, 0):
        shifted_statistics(tile, shift, 1 / TEMPERATURE, running)
    running[3] = (z.gather(1, labels[:, None])[:, 0] / TEMPERATURE).float()
    return running


@pytest.mark.parametrize(("vocabulary", "tiles"), [(37, 1), (2500, 1), (2500, 3)])
def test_log_probs(vocabulary: int, tiles: int) -> None:
    z, labels, lse, shift = problem(vocabulary)
    zt = (z - shift.double()[:, None]).t().contiguous().bfloat16()
    running = measured(zt, shift, z, labels, tiles)
    assert torch.equal(running, measured(zt, shift, z, labels, tiles))
    logprob = combine(running[None])[0].double()
    exact = z.gather(1, labels[:, None])[:, 0] / TEMPERATURE - lse
    error = (logprob - exact).abs()
    assert error.max() <= (3e-3 if vocabulary > 1000 else 5e-3) and error.mean() <= 1e-3
    # A number of 8 significant bits is off by at most 2⁻⁸ of itself, which counts with its probability.
    p = (z / TEMPERATURE - lse[:, None]).exp()
    assert (error <= 2**-8 * (p * (z - shift.double()[:, None]).abs()).sum(1) / TEMPERATURE + 1e-5).all()
    without_shift = (torch.logsumexp(z.bfloat16().double() / TEMPERATURE, 1) - lse).abs()
    assert without_shift.max() > 10 * error.max()


@pytest.mark.parametrize("all_terms", [False, True])
def test_gradient_of_the_stored_logits(all_terms: bool) -> None:
    z, labels, _, shift = problem(300)
    zt = (z - shift.double()[:, None]).t().contiguous().bfloat16()
    stored = zt.double().t() + shift.double()[:, None]
    _, _, lse, mean = combine(measured(zt, shift, stored, labels, 1)[None])
    logprob, entropy, lse_gradient = torch.randn(3, TOKENS, generator=torch.Generator().manual_seed(1))
    logprob[1] = entropy[1] = lse_gradient[1] = 0.0
    gradients = [logprob, entropy if all_terms else None, lse_gradient if all_terms else None]
    expected = exact_gradient(stored, labels, 1 / TEMPERATURE, gradients)
    found = shifted_gradient(zt, shift, labels, 1 / TEMPERATURE, RowGradients(lse, mean, *gradients)).double().t()
    assert (found - expected).norm() / expected.norm() <= 6e-3  # the interpreter cuts where a GPU rounds
    assert (found[1] == 0).all()
