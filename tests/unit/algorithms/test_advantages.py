"""Group advantages: statistics, masks, and what a group without variance gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.algorithms.advantages import (
    component_advantages,
    gradient_shares,
    push_violators,
    treat_truncated,
    zero_variance,
)


def total(*arguments, **options):
    """One advantage per rollout, as the trainer uses it."""
    return component_advantages(*arguments, **options).sum(-1).float()


def advantages(rewards, valid=None, included=None, weights=None, of=total, **options):
    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    return of(
        rewards,
        torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid,
        torch.ones(rewards.shape[:2], dtype=torch.bool) if included is None else included,
        weights=torch.ones(rewards.shape[2]) if weights is None else torch.as_tensor(weights),
        **({"normalizer": "zscore", "combine": "advantages", "std_floor": 1e-6} | options),
    )


def test_zscore_uses_the_population_standard_deviation():
    found = advantages([[[1.0], [2.0], [3.0], [6.0]]])
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    torch.testing.assert_close(found[0], (values - 3) / values.std(correction=0))


def test_components_are_normalised_before_they_are_averaged():
    """Scale of one component must not drown the other (section 3.1)."""
    small = torch.tensor([0.0, 1.0, 0.0, 1.0])
    rewards = torch.stack([small, 1000 * (1 - small)], -1)[None]
    torch.testing.assert_close(advantages(rewards), torch.zeros(1, 4), atol=1e-5, rtol=0)
    assert (advantages(rewards, combine="rewards").abs() > 0.9).all()


def test_range_spans_minus_one_to_one_and_none_only_centres():
    rewards = [[[1.0], [2.0], [5.0]]]
    torch.testing.assert_close(advantages(rewards, normalizer="range"), torch.tensor([[-1.0, -0.5, 1.0]]))
    torch.testing.assert_close(advantages(rewards, normalizer="none"), torch.tensor([[1.0, 2.0, 5.0]]) - 8 / 3)


@pytest.mark.parametrize("normalizer", ["zscore", "range", "none"])
@pytest.mark.parametrize("combine", ["advantages", "rewards"])
def test_equal_rewards_give_exactly_zero(normalizer, combine):
    found = advantages(torch.full((2, 7, 2), 0.1), normalizer=normalizer, combine=combine, weights=[0.3, 0.9])
    assert (found == 0).all() and zero_variance(found).all()


@pytest.mark.parametrize("combine", ["advantages", "rewards"])
def test_excluded_rollouts_leave_the_statistics_and_get_zero(combine):
    torch.manual_seed(0)
    rewards = torch.rand(1, 6, 2)
    included = torch.tensor([[True, False, True, True, False, True]])
    changed = rewards.clone()
    changed[0, 1], changed[0, 4] = 1e6, -1e6
    found = advantages(changed, included=included, combine=combine)
    assert (found[~included] == 0).all()
    torch.testing.assert_close(found[included], advantages(rewards[:, included[0]], combine=combine)[0])


def test_invalid_component_leaves_the_average_and_weights_are_renormalised():
    torch.manual_seed(0)
    rewards = torch.rand(1, 5, 2)
    valid = torch.ones(1, 5, 2, dtype=torch.bool)
    valid[0, :, 1] = False
    found = advantages(rewards, valid=valid, weights=[0.2, 0.8])
    torch.testing.assert_close(found, advantages(rewards[..., :1]))


def test_invalid_scores_are_not_zeros():
    rewards = torch.tensor([[[1.0], [2.0], [float("nan")], [3.0]]]).nan_to_num(1e9)
    valid = torch.tensor([[[True], [True], [False], [True]]])
    found = advantages(rewards, valid=valid)
    assert found[0, 2] == 0
    torch.testing.assert_close(found[0, [0, 1, 3]], advantages([[[1.0], [2.0], [3.0]]])[0])


def test_nothing_valid_gives_zero():
    torch.manual_seed(0)
    found = advantages(torch.rand(1, 3, 2), valid=torch.zeros(1, 3, 2, dtype=torch.bool))
    assert (found == 0).all()


@settings(max_examples=50)
@given(
    st.lists(st.floats(-100, 100, width=16), min_size=2, max_size=8),
    st.floats(0.5, 10),
    st.floats(-5, 5),
    st.sampled_from(["zscore", "range"]),
)
def test_affine_changes_of_the_reward_do_not_matter(values, scale, offset, normalizer):
    rewards = torch.tensor(values, dtype=torch.float64).view(1, -1, 1)
    first, second = (
        total(
            r,
            torch.ones_like(r, dtype=torch.bool),
            torch.ones(1, len(values), dtype=torch.bool),
            weights=torch.ones(1),
            normalizer=normalizer,
            combine="advantages",
            std_floor=1e-12,
        )
        for r in (rewards, rewards * scale + offset)
    )
    if rewards.max() - rewards.min() > 1e-2:
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
        if normalizer == "zscore":
            assert abs(first.sum().item()) < 1e-4


def test_truncated_rollouts():
    rewards, truncated = torch.ones(1, 2, 2), torch.tensor([[False, True]])
    kept, included = treat_truncated(rewards, truncated, mode="mask", penalty=0.5)
    assert torch.equal(kept, rewards) and included.tolist() == [[True, False]]
    kept, included = treat_truncated(rewards, truncated, mode="penalty", penalty=0.5)
    assert kept[0].tolist() == [[1, 1], [0.5, 0.5]] and included.all()
    kept, included = treat_truncated(rewards, truncated, mode="keep", penalty=0.5)
    assert torch.equal(kept, rewards) and included.all()


def test_each_component_may_have_a_normaliser_of_its_own():
    torch.manual_seed(0)
    rewards = torch.rand(2, 5, 3)
    mixed = advantages(rewards, weights=[1.0, 2.0, 3.0], normalizer=["zscore", "range", "none"])
    alone = [advantages(rewards[..., [k]], normalizer=n) for k, n in enumerate(("zscore", "range", "none"))]
    torch.testing.assert_close(mixed, (alone[0] + 2 * alone[1] + 3 * alone[2]) / 6)
    with pytest.raises(ValueError, match="one normalizer"):
        advantages(rewards, normalizer=["zscore"] * 3, combine="rewards")


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from(["zscore", "range", "none"]), st.sampled_from(["advantages", "rewards"]))
def test_the_parts_of_an_advantage_add_up_to_what_a_plain_loop_gives(seed, normalizer, combine):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(2, 6, 3, generator=generator).double()
    valid = torch.rand(2, 6, 3, generator=generator) > 0.2
    included = torch.rand(2, 6, generator=generator) > 0.2
    weights = torch.tensor([0.5, 1.0, 2.0])
    options = {"normalizer": normalizer, "combine": combine, "std_floor": 1e-6, "weights": weights}
    parts = component_advantages(rewards, valid, included, **options)
    assert (parts[~included] == 0).all() and parts.shape == rewards.shape
    expected = torch.stack(
        [
            plain(r, v & i.unsqueeze(-1), weights, normalizer, combine)
            for r, v, i in zip(rewards, valid, included, strict=True)
        ]
    )
    torch.testing.assert_close(parts.sum(-1), expected, atol=1e-9, rtol=1e-9)


def plain(rewards, present, weights, normalizer, combine):
    """One group [G, R], rollout by rollout."""

    def normalise(column, there):
        known = column[there]
        if len(known) == 0 or known.max() == known.min():
            return torch.zeros_like(column)
        if normalizer == "zscore":
            column = (column - known.mean()) / (known.std(correction=0) + 1e-6)
        elif normalizer == "range":
            column = 2 * (column - known.min()) / (known.max() - known.min()) - 1
        else:
            column = column - known.mean()
        return column * there

    def average(values):
        return torch.tensor(
            [
                sum(v * w for v, w, p in zip(row, weights, there, strict=True) if p)
                / max(sum(w for w, p in zip(weights, there, strict=True) if p), 1e-300)
                for row, there in zip(values, present, strict=True)
            ],
            dtype=torch.float64,
        )

    if combine == "rewards":
        return normalise(average(rewards), present.any(-1))
    return average(torch.stack([normalise(rewards[:, k], present[:, k]) for k in range(rewards.shape[1])], -1))


def test_violators_are_negative_however_well_they_write():
    found = torch.tensor([[2.0, 0.5, -1.0, -1.5], [1.0, 0.2, -0.2, -1.0], [1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    violates = torch.tensor(
        [[True, False, True, False], [False, False, False, True], [True, True, True, True], [False, True, False, False]]
    )
    pushed = found + push_violators(found, violates, torch.ones(4, 4, dtype=torch.bool), 0.1)
    assert (pushed[0][violates[0]] <= -0.1 + 1e-6).all() and pushed[0, 0] == pytest.approx(-0.1)
    assert pushed[0].sum() == pytest.approx(0, abs=1e-6) and pushed[0, 1] > found[0, 1]
    assert pushed[0, 0] > pushed[0, 2] and pushed[0, 1] > pushed[0, 3], "the order among equals stays"
    assert torch.equal(pushed[1], found[1].double()), "already negative: nothing is touched"
    assert torch.equal(pushed[2], found[2].double()), "nobody kept the rule: nothing to be measured against"
    assert pushed[3, 1] == pytest.approx(-0.1) and (pushed[3, [0, 2, 3]] > 0).all(), (
        "a group without variance now has some"
    )


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.floats(0.01, 1.0), st.sampled_from(["zscore", "range", "none"]))
def test_after_the_push_every_violator_is_below_zero_under_any_normaliser(seed, margin, normalizer):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(3, 7, 2, generator=generator)
    violates = torch.rand(3, 7, generator=generator) > 0.6
    included = torch.rand(3, 7, generator=generator) > 0.2
    found = advantages(rewards, included=included, normalizer=normalizer)
    push = push_violators(found, violates, included, margin)
    after = found.double() + push
    assert (after[~included] == 0).all()
    kept = (included & ~violates).any(1, keepdim=True)
    assert (after[violates & included & kept.expand_as(violates)] <= -margin + 1e-9).all()


def test_shares_of_the_gradient():
    parts = torch.tensor([[[1.0, 0.5], [-1.0, 0.0]], [[0.0, 2.0], [0.0, -2.0]]])
    mass = torch.tensor([[10.0, 20.0], [5.0, 0.0]])
    bucket = torch.tensor([[0, 1], [1, 1]])
    shares = gradient_shares(parts, mass, bucket, 3)
    torch.testing.assert_close(shares * 45, torch.tensor([[10.0, 20.0, 0.0], [5.0, 10.0, 0.0]]).double())
    assert (gradient_shares(parts * 0, mass, bucket, 3) == 0).all()
