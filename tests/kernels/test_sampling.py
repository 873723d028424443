"""Draws of tokens in C++ against fp64, on all instruction sets."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.kernels import sampling

built = pytest.mark.skipif(sampling._cpu is None, reason="the C++ kernels are not built")


def expected(logits, scales, noise):
    """Inverts the cumulative distribution in fp64. Returns (tokens, log-probs of all tokens, cumulative)."""
    scaled = logits.double() * scales.double()[:, None]
    cumulative = scaled.softmax(-1).cumsum(-1)
    targets = noise.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0], scaled.log_softmax(-1), cumulative


@built
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("vocabulary", [1, 7, 1024, 1025, 5000])
def test_it_equals_fp64(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 4 * torch.randn(40, vocabulary + 3, generator=generator)[:, :vocabulary]
    scales, noise = torch.rand(40, generator=generator) + 0.5, torch.rand(40, generator=generator)
    tokens, logprobs = sampling.draw(logits, scales, noise)
    exact, all_logprobs, cumulative = expected(logits, scales, noise)
    for row in range(40):  # another token only where the noise lies at its border, up to rounding
        border = cumulative[row, min(int(tokens[row]), int(exact[row]))]
        assert tokens[row] == exact[row] or abs(float(border - noise[row])) < 1e-6
    torch.testing.assert_close(logprobs.double(), all_logprobs.gather(1, tokens[:, None])[:, 0], rtol=1e-6, atol=1e-6)


@built
@pytest.mark.usefixtures("_instructions")
def test_impossible_tokens_are_never_drawn():
    logits = torch.full((3, 3000), -torch.inf)
    logits[:, 1500] = logits[:, 2999] = 1.0
    noise = torch.tensor([0.0, 0.5, 1 - 2.0**-24])
    tokens, logprobs = sampling.draw(logits, torch.ones(3), noise)
    assert tokens.tolist() == [1500, 2999, 2999]
    torch.testing.assert_close(logprobs, torch.full((3,), 0.5).log())


@built
def test_a_number_that_is_not_finite_shows_in_the_log_prob_of_its_row_alone():
    logits = torch.zeros(3, 2000)
    logits[1, 1700] = torch.nan
    _, logprobs = sampling.draw(logits, torch.ones(3), torch.full((3,), 0.25))
    assert logprobs[1].isnan() and logprobs[[0, 2]].isfinite().all()


@built
def test_a_row_gets_the_same_bits_in_any_company_and_on_any_number_of_threads():
    logits, noise = torch.randn(24, 4096), torch.rand(24)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = sampling.draw(logits, torch.ones(24), noise)
        torch.set_num_threads(3)
        parts = [sampling.draw(logits[rows], torch.ones(24)[rows], noise[rows]) for rows in (slice(0, 5), slice(5, 24))]
    finally:
        torch.set_num_threads(before)
    for place in range(2):
        assert torch.equal(whole[place], torch.cat([part[place] for part in parts]))


def test_other_types_are_torch_s():
    assert not sampling.serves(torch.zeros(2, 8, dtype=torch.float64))
    assert not sampling.serves(torch.zeros(2, 8).t())
