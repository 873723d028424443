"""Lengths by what became of rollouts: the gap, its test against chance, censored rollouts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from megatron_lwz.rollout.lengths import (
    GroupLengths,
    RolloutLength,
    beyond_chance,
    distribution_gap,
    main_cause,
    sample,
)

LEVEL = 0.02
"""False-alarm rate of the tests, so that a few hundred tries see it."""


def test_the_gap_is_the_largest_difference_of_the_distribution_functions():
    assert distribution_gap([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert distribution_gap([1, 2, 3, 4], [1, 2]) == 0.5
    assert distribution_gap([1, 2, 3, 4], [4, 4]) == 0.75
    assert distribution_gap([5, 5, 5], [7]) == 1
    assert distribution_gap([1], []) == distribution_gap([], [1]) == 0
    noise = np.random.default_rng(0)
    first, second = noise.integers(0, 50, 300), noise.integers(10, 60, 200)
    by_hand = max(abs((first <= x).mean() - (second <= x).mean()) for x in range(60))
    assert distribution_gap(first, second) == pytest.approx(by_hand)


def simulate(seed: int, fate, *, batches: int = 3, groups: int = 16, size: int = 4) -> list[GroupLengths]:
    """Lengths of a law with a long tail; rollouts of a prompt are alike, and batch for batch they grow.

    `fate(noise, lengths)` gives (why the group is dropped or None, why each rollout is left out or None).
    """
    noise = np.random.default_rng(seed)
    found = []
    for number in range(batches * groups):
        batch = number // groups
        lengths = np.minimum(np.exp(noise.normal(5 + 0.3 * batch + noise.normal(0, 0.7), 0.4, size)), 1000).astype(int)
        dropped, excluded = fate(noise, lengths)
        rollouts = tuple(RolloutLength(int(n), "stop", why) for n, why in zip(lengths, excluded, strict=True))
        found.append(GroupLengths(number, batch + 1, None if dropped else batch + 1, dropped, rollouts))
    return found


def group_at_random(noise, lengths):
    return ("zero variance" if noise.random() < 0.2 else None), [None] * len(lengths)


def rollouts_at_random(noise, lengths):
    return None, ["truncated" if noise.random() < 0.15 else None for _ in lengths]


def long_group(noise, lengths):
    return ("failed" if lengths.max() > 500 and noise.random() < 0.7 else None), [None] * len(lengths)


def long_rollouts(noise, lengths):
    return None, ["truncated" if length > 500 else None for length in lengths]


def crashes(seed: int, *, batches: int, per_token: float) -> list[GroupLengths]:
    """Some groups fail half-way: at random, or, with `per_token`, each token may be the one at which its group fails."""
    noise = np.random.default_rng(seed)
    found = []
    for group in simulate(seed, lambda noise, lengths: (None, [None] * len(lengths)), batches=batches):
        lengths = np.array([rollout.tokens for rollout in group.rollouts])
        end = (
            noise.exponential(1 / per_token)
            if per_token
            else noise.choice([noise.uniform(20, 300), np.inf], p=[0.2, 0.8])
        )
        if end < lengths.max():
            rollouts = tuple(RolloutLength(int(min(n, end)), "stop" if n <= end else None) for n in lengths)
            group = GroupLengths(group.id, group.admitted, None, "failed", rollouts)
        found.append(group)
    return found


@pytest.mark.parametrize("fate", [group_at_random, rollouts_at_random])
def test_exclusion_without_regard_to_length_gives_no_more_warnings_than_stated(fate):
    alarms = sum(beyond_chance(sample(simulate(seed, fate)), LEVEL) for seed in range(200))
    assert alarms <= 10, "of 200 tries at 2 %: 4 are expected, 11 or more come once in 300 sets of seeds"


def test_a_test_that_took_rollouts_for_independent_would_warn_for_nothing():
    alarms = 0
    for seed in range(60):
        groups = simulate(seed, group_at_random)
        alone = [
            GroupLengths(8 * group.id + place, group.admitted, group.step, group.dropped, (rollout,))
            for group in groups
            for place, rollout in enumerate(group.rollouts)
        ]
        alarms += beyond_chance(sample(alone), LEVEL)
    assert alarms >= 6


@pytest.mark.parametrize(("fate", "cause"), [(long_group, "failed"), (long_rollouts, "truncated")])
def test_losing_the_long_ones_is_seen_and_named(fate, cause):
    seen = [sample(simulate(seed, fate, batches=5, groups=32)) for seed in range(10)]
    assert sum(beyond_chance(found, 0.001) for found in seen) >= 9
    assert all(main_cause(found) == cause for found in seen)
    assert all(found.trained.mean() < found.tokens.mean() for found in seen)


def test_crashes_at_random_open_no_gap_though_their_texts_are_cut():
    tried = [crashes(seed, batches=4, per_token=0.0) for seed in range(60)]
    assert sum(beyond_chance(sample(groups), LEVEL) for groups in tried) <= 4
    as_written = [
        [replace(g, rollouts=tuple(replace(r, end="stop") for r in g.rollouts)) for g in groups] for groups in tried
    ]
    naive = sum(beyond_chance(sample(groups), LEVEL) for groups in as_written)
    assert naive >= 12, "counting what was written of them would warn, and that texts grow"


def test_crashes_that_hit_by_the_token_lose_the_long_texts_and_are_seen():
    found = [sample(crashes(seed, batches=8, per_token=1e-3)) for seed in range(20)]
    assert all(batch.trained.mean() < batch.tokens.mean() for batch in found)
    assert sum(beyond_chance(batch, LEVEL) for batch in found) >= 8
