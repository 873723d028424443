"""Draws tokens from logits, with noise that is a pure function of (seed, position).

Shape legend: N rows (sequences), V true vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_lwz.kernels import sampling

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def uniform_noise(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns [N] fp32 noise in [0, 1), a counter-based hash of seed and position (uint64 each).

    The hash is splitmix64 (Steele et al. 2014). It has no other input, so a sequence draws the same noise alone, in any
    batch, and when another process continues it.
    """
    return (_mix(_mix(seeds + _STEP) + positions * _STEP) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _FACTORS[0]
    state = (state ^ (state >> np.uint64(27))) * _FACTORS[1]
    return state ^ (state >> np.uint64(31))


class Sampler:
    """Draws one token per row. Settings are fixed for a batch, so that a step computes only what they require."""

    def __init__(
        self, temperatures: Sequence[float], top_ps: Sequence[float], seeds: Sequence[int], *, device: torch.device
    ) -> None:
        self._device = device
        self._greedy = torch.tensor([value == 0 for value in temperatures], device=device)
        self._all_greedy = all(value == 0 for value in temperatures)
        self._any_greedy = any(value == 0 for value in temperatures)
        self._plain = all(value in (0, 1) for value in temperatures)
        self._temperatures = torch.tensor([value or 1.0 for value in temperatures], device=device)[:, None]
        self._nucleus = [row for row, value in enumerate(top_ps) if value < 1 and temperatures[row] > 0]
        self._top_ps = torch.tensor([top_ps[row] for row in self._nucleus], device=device)[:, None]
        self._scales = (1.0 / self._temperatures[:, 0]).contiguous()
        self._seeds = np.array([seed % 2**64 for seed in seeds], dtype=np.uint64)

    def draw(self, logits: Tensor, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Returns (tokens [N] int64, log-probs [N] fp32) for the tokens at `positions` [N], from logits [N, V] fp32.

        The log-prob is that of the full softmax at the row's temperature, before top-p. At temperature 0 (the most
        likely token) it is that of the plain softmax. Sampling inverts the cumulative distribution in vocabulary order.
        """
        if not (self._any_greedy or self._nucleus) and sampling.serves(logits):
            return sampling.draw(logits, self._scales, self._noise(positions))
        scaled = logits if self._plain else logits / self._temperatures
        if self._all_greedy:
            tokens = scaled.argmax(-1)
        else:
            tokens = self._invert(scaled.softmax(-1), self._noise(positions).to(self._device)[:, None])
            if self._any_greedy:
                tokens = torch.where(self._greedy, scaled.argmax(-1), tokens)
        logprobs = scaled.gather(1, tokens[:, None])[:, 0] - scaled.logsumexp(-1)
        return tokens, logprobs

    def _noise(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(uniform_noise(self._seeds, positions.astype(np.uint64)))

    def _invert(self, probabilities: Tensor, noise: Tensor) -> Tensor:
        if self._nucleus:
            probabilities[self._nucleus] = _keep_nucleus(probabilities[self._nucleus], self._top_ps)
        cumulative = probabilities.cumsum(-1)
        tokens = torch.searchsorted(cumulative, noise * cumulative[:, -1:], right=True)[:, 0]
        return tokens.clamp_(max=probabilities.shape[1] - 1)


def _keep_nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Zeroes all but the smallest set of most likely tokens whose probabilities reach `top_p` (Holtzman et al. 2020)."""
    ordered, order = probabilities.sort(-1, descending=True)
    ordered = ordered.where(ordered.cumsum(-1) - ordered < top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(1, order, ordered)
