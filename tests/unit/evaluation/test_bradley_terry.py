import math
import time

import numpy as np
import pytest

from megatron_lwz.evaluation.bradley_terry import ELO, Games, bootstrap, fit, online_elo
from megatron_lwz.evaluation.statistics import levels


def tournament(rng, theta, beta, prompts, *, ties=0.3):
    """Every pair on every prompt in both orders; E[score of the first] = σ(θ_i − θ_j + β), some of it as ties."""
    rows = []
    for i in range(len(theta)):
        for j in range(len(theta)):
            if i != j:
                p = 1 / (1 + math.exp(-(theta[i] - theta[j] + beta)))
                tie = 2 * min(p, 1 - p) * ties
                score = rng.choice([1.0, 0.5, 0.0], p=[p - tie / 2, tie, 1 - p - tie / 2], size=prompts)
                rows += [(prompt, i, j, s) for prompt, s in enumerate(score)]
    return Games.of(rows)


def test_intervals_cover_planted_strengths_in_200_tournaments():
    rng = np.random.default_rng(2024)
    begin, inside, beta_inside = time.monotonic(), [], []
    for trial in range(200):
        theta = np.concatenate([[0.0], rng.normal(0, 1.2, 3)])
        beta = rng.normal(0, 0.5)
        point, drawn = bootstrap(tournament(rng, theta, beta, 100), 4, 0, resamples=400, seed=trial)
        low, high = np.percentile(drawn.theta, levels(100), axis=0)
        inside += ((low <= theta) & (theta <= high))[1:].tolist()
        beta_inside.append(
            np.percentile(drawn.beta, levels(100)[0]) <= beta <= np.percentile(drawn.beta, levels(100)[1])
        )
        assert np.all((low <= point.theta[0]) & (point.theta[0] <= high))
    assert 0.92 <= np.mean(inside) <= 0.98, np.mean(inside)
    assert 0.90 <= np.mean(beta_inside) <= 0.985, np.mean(beta_inside)
    assert time.monotonic() - begin < 120


def test_exact_frequencies_give_the_exact_strengths():
    theta, beta = np.array([0.0, 1.0, -0.7]), 0.4
    played = np.ones((1, 3, 3)) * (1 - np.eye(3)) * 1e6
    won = played / (1 + np.exp(-(theta[:, None] - theta[None, :] + beta)))
    found = fit(won, played, 0)
    assert found.theta[0] == pytest.approx(theta, abs=1e-5) and found.beta[0] == pytest.approx(beta, abs=1e-5)
    moved = fit(won, played, 1)
    assert moved.theta[0] == pytest.approx(theta - 1.0, abs=1e-5), "the anchor only shifts"


def test_a_player_that_loses_or_wins_every_game_stays_finite():
    rows = [(prompt, *order) for prompt in range(100) for order in ((0, 1, 1.0), (1, 0, 0.0), (0, 2, 0.0), (2, 0, 1.0))]
    point, drawn = bootstrap(Games.of(rows), 3, 0, resamples=100)
    assert point.theta[0, 1] < -4 and point.theta[0, 2] > 4 and np.isfinite(drawn.theta).all()
    assert np.abs(point.theta * ELO).max() < 2000


def test_who_never_met_the_anchors_group_is_finite_too():
    games = Games.of([(0, 0, 1, 1.0), (0, 1, 0, 0.0), (1, 2, 3, 1.0), (1, 3, 2, 0.0)])
    point, drawn = bootstrap(games, 5, 0, resamples=50)
    assert np.isfinite(point.theta).all() and np.isfinite(drawn.theta).all() and point.theta[0, 4] == 0


def test_online_elo_follows_the_strengths():
    rng = np.random.default_rng(0)
    theta = np.array([0.0, 0.8, -0.8])
    found = online_elo(tournament(rng, theta, 0.0, 200), 3, 0, anchor_elo=1000)
    assert found[0] == pytest.approx(1000) and found == pytest.approx(1000 + ELO * theta, abs=40)
