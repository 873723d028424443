"""Sampling: noise is a pure function of seed and position; distribution, nucleus and log-probs are what they claim."""

from __future__ import annotations

import numpy as np
import torch

from megatron_lwz.models.decoding_sampling import Sampler, uniform_noise

CPU = torch.device("cpu")


def noise(seed: int, positions: list[int]) -> np.ndarray:
    return uniform_noise(np.full(len(positions), seed, np.uint64), np.array(positions, np.uint64))


def test_noise_depends_on_seed_and_position_only() -> None:
    alone = [noise(7, [place])[0] for place in range(50)]
    assert noise(7, list(range(50))).tolist() == alone
    assert len({*alone, *noise(8, list(range(50))).tolist()}) > 95


def test_noise_is_uniform_over_positions_and_over_seeds() -> None:
    count = 40_000
    for values in (
        noise(3, list(range(count))),
        uniform_noise(np.arange(count, dtype=np.uint64), np.full(count, 100, np.uint64)),
    ):
        assert values.min() >= 0 and values.max() < 1
        counts = np.histogram(values, 20, (0, 1))[0]
        assert ((counts - count / 20) ** 2 / (count / 20)).sum() < 45  # chi-square, 19 degrees: p < 1e-3
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.02


def draw_many(temperature: float, top_p: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(1, 30) * 2
    sampler = Sampler([temperature] * count, [top_p] * count, [5] * count, device=CPU)
    tokens, logprobs = sampler.draw(logits.expand(count, -1).clone(), np.arange(count))
    return logits[0], tokens, logprobs


def test_samples_follow_the_softmax_at_the_temperature() -> None:
    logits, tokens, logprobs = draw_many(0.8, 1.0)
    wanted = (logits / 0.8).softmax(-1)
    assert torch.allclose(tokens.bincount(minlength=30) / len(tokens), wanted, atol=0.012)
    assert torch.allclose(logprobs, wanted.log()[tokens], atol=1e-5)


def test_nucleus_is_the_smallest_set_that_reaches_top_p_and_logprobs_stay_of_the_full_softmax() -> None:
    logits, tokens, logprobs = draw_many(1.0, 0.7)
    wanted = logits.softmax(-1)
    ordered, order = wanted.sort(descending=True)
    size = int((ordered.cumsum(-1) < 0.7).sum()) + 1
    assert set(tokens.tolist()) == set(order[:size].tolist())
    frequencies = tokens.bincount(minlength=30)[order[:size]] / len(tokens)
    assert torch.allclose(frequencies, ordered[:size] / ordered[:size].sum(), atol=0.012)
    assert torch.allclose(logprobs, wanted.log()[tokens], atol=1e-5)


def test_rows_do_not_change_each_other() -> None:
    torch.manual_seed(1)
    logits = torch.randn(4, 50)
    settings = ([0.0, 1.0, 0.5, 1.0], [1.0, 1.0, 0.9, 0.3], [1, 2, 3, -4])
    together = Sampler(*settings, device=CPU).draw(logits.clone(), np.array([4, 5, 6, 7]))
    for row in range(4):
        one = Sampler(*([values[row]] for values in settings), device=CPU)
        token, logprob = one.draw(logits[row : row + 1].clone(), np.array([4 + row]))
        assert token[0] == together[0][row] and torch.isclose(logprob[0], together[1][row], atol=1e-6)
    assert together[0][0] == logits[0].argmax()


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.full((1000, 10), -torch.inf)
    logits[:, 3] = 0
    tokens, _ = Sampler([1.0] * 1000, [1.0] * 1000, [0] * 1000, device=CPU).draw(logits, np.arange(1000))
    assert (tokens == 3).all()
