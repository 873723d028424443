"""Estimates strengths from pairwise verdicts: Bradley–Terry with a position effect, by regularised maximum likelihood.

P(first beats second) = σ(θ_first − θ_second + β); a tie is half a win. β is the judge's bias for the first place, so
the strengths θ are free of position bias. Elo = anchor + 400/ln 10 · (θ − θ_anchor).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ELO = 400 / math.log(10)
"""Elo points per unit of θ: 400 points correspond to odds of 10 to 1."""
PRIOR_GAMES = 0.25
"""Virtual ties added per order of each pair that has games.

They keep the strength of a player that lost every game finite and hardly change the others.
"""
_STEPS = 100
_LONGEST_STEP = 2.0


@dataclass(frozen=True)
class Games:
    """Verdicts as arrays of equal length G: prompt and player indices, and `score` of the first player: 1, 0.5 or 0."""

    prompts: np.ndarray
    first: np.ndarray
    second: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, float]]) -> Games:
        """Builds the arrays from (prompt, first, second, score) of every game."""
        prompts, first, second, score = np.array(rows, np.float64).reshape(-1, 4).T
        return cls(prompts.astype(np.int64), first.astype(np.int64), second.astype(np.int64), score)

    def __len__(self) -> int:
        return len(self.score)

    def tables(self, players: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (scores of the first, numbers of games) per prompt, [P, K, K] each: row first, column second."""
        prompts = int(self.prompts.max()) + 1 if len(self) else 0
        shape = (prompts, players, players)
        won, played = np.zeros(shape), np.zeros(shape)
        where = (self.prompts, self.first, self.second)
        np.add.at(won, where, self.score)
        np.add.at(played, where, 1.0)
        return won, played


@dataclass(frozen=True)
class Fit:
    """Fitted strengths `theta` [B, K], 0 for the anchor, and position effects `beta` [B] of B tables."""

    theta: np.ndarray
    beta: np.ndarray


def fit(won: np.ndarray, played: np.ndarray, anchor: int, *, prior: float = PRIOR_GAMES) -> Fit:
    """Fits B tables [B, K, K] together by Newton's method. The likelihood is concave, so there is one maximum.

    Players without any game stay at 0.
    """
    met = played + played.transpose(0, 2, 1) > 0
    played = played + prior * met
    won = won + 0.5 * prior * met
    batch, players = played.shape[:2]
    free = [*(k for k in range(players) if k != anchor), players]  # the last one is β
    x = np.zeros((batch, players + 1))
    diagonal = np.arange(players)
    for _ in range(_STEPS):
        z = x[:, :-1, None] - x[:, None, :-1] + x[:, -1, None, None]
        p = 1.0 / (1.0 + np.exp(-z))
        residual, curve = won - played * p, played * p * (1 - p)
        gradient = np.concatenate([residual.sum(2) - residual.sum(1), residual.sum((1, 2))[:, None]], axis=1)
        hessian = np.zeros((batch, players + 1, players + 1))
        both = curve + curve.transpose(0, 2, 1)
        hessian[:, :-1, :-1] = -both
        hessian[:, diagonal, diagonal] += both.sum(2)
        hessian[:, :-1, -1] = hessian[:, -1, :-1] = curve.sum(2) - curve.sum(1)
        hessian[:, -1, -1] = curve.sum((1, 2))
        reduced = hessian[:, free][:, :, free] + 1e-9 * np.eye(len(free))
        step = np.linalg.solve(reduced, gradient[:, free, None])[..., 0]
        x[:, free] += np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
        if np.abs(step).max(initial=0.0) < 1e-9:
            break
    return Fit(x[:, :-1], x[:, -1])


def bootstrap(games: Games, players: int, anchor: int, *, resamples: int = 1000, seed: int = 0) -> tuple[Fit, Fit]:
    """Returns (fit of all games, B = 1; fits of bootstrap samples of whole prompts, B = `resamples`)."""
    won, played = games.tables(players)
    prompts = len(won)
    drawn = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    weights = np.concatenate([np.ones((1, prompts)), drawn])
    shape = (len(weights), players, players)
    both = fit(
        (weights @ won.reshape(prompts, -1)).reshape(shape),
        (weights @ played.reshape(prompts, -1)).reshape(shape),
        anchor,
    )
    return Fit(both.theta[:1], both.beta[:1]), Fit(both.theta[1:], both.beta[1:])


def online_elo(
    games: Games, players: int, anchor: int, *, anchor_elo: float, k: float = 16.0, orders: int = 50, seed: int = 0
) -> np.ndarray:
    """Returns ratings [K] that are updated after each game, as in chess, averaged over shuffled orders of the games.

    They depend on the order and on `k` and do not converge. They serve for comparison with published numbers that were
    computed this way.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(players)
    first, second, score = games.first.tolist(), games.second.tolist(), games.score.tolist()
    for _ in range(orders):
        rating = [anchor_elo] * players
        for game in rng.permutation(len(games)).tolist():
            i, j = first[game], second[game]
            gain = k * (score[game] - 1 / (1 + 10 ** ((rating[j] - rating[i]) / 400)))
            rating[i] += gain
            rating[j] -= gain
        total += np.array(rating) - rating[anchor] + anchor_elo
    return total / orders
