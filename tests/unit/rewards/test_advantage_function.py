"""`reward.advantage_function`: what it may decide, what stays the house's, and what is refused before a rollout."""

import pytest
import torch

from megatron_lwz.config import validate
from megatron_lwz.config.load import load_config, save_config
from megatron_lwz.errors import ConfigError
from megatron_lwz.orchestrator.experience import VIOLATORS, advantages_of, experience_metrics, is_barren, make_batch
from megatron_lwz.rewards.composite import build_rewards
from megatron_lwz.types import ComponentScore, FinishReason, Group, Prompt
from tests.support.scoring import rollout

HERE = "tests.support.user_advantages"
NAMES = ("length", "format")


def config(name, *, grpo=None, **reward):
    return validate({"reward": {"advantage_function": name and f"{HERE}:{name}", **reward}, "grpo": grpo or {}})


def group(*scores, prompt="p", cut=()):
    reasons = [FinishReason.LENGTH if place in cut else FinishReason.STOP for place in range(len(scores))]
    rollouts = tuple(rollout("x", index=place, finish=reason) for place, reason in enumerate(reasons))
    table = tuple(dict(zip(NAMES, map(ComponentScore, row), strict=True)) for row in scores)
    return Group(0, Prompt(prompt, "Write."), rollouts, table, admitted=0)


@pytest.mark.parametrize("truncated", ["mask", "penalty", "keep"])
@pytest.mark.parametrize("use", ["component", "rescale"])
def test_the_built_in_maths_written_as_a_function_gives_the_built_in_advantages(truncated, use):
    generator = torch.Generator().manual_seed(3)
    rewards = torch.rand(40, 6, 2, generator=generator)
    rewards[:4] = rewards[:4, :1]  # equal scores
    valid = torch.rand(40, 6, 2, generator=generator) > 0.3
    cut = torch.rand(40, 6, generator=generator) > 0.7
    section = {"length": {"use": use}, "format": {"weight": 0.3}, "violators": {"format": 0.2}}
    own, parts, total = (
        advantages_of(rewards, valid, cut, config(name, grpo={"truncated": truncated}, **section), names=NAMES)
        for name in (None, "builtin", "builtin_total")
    )
    torch.testing.assert_close(parts.parts, own.parts, atol=1e-12, rtol=0)
    torch.testing.assert_close(total.parts.sum(-1), own.parts.sum(-1), atol=1e-12, rtol=0)
    assert parts.names == own.names == (*NAMES, VIOLATORS) and total.names == ("advantage_function", VIOLATORS)
    for found in (parts, total):
        assert torch.equal(found.included, own.included) and torch.equal(found.violates, own.violates)
        assert torch.equal(found.total == 0, own.total == 0), "the same groups have no variance"


def test_a_rollout_that_takes_no_part_gets_zero_whatever_the_function_says():
    groups = [group((0.0, 1.0), (1.0, 0.0), (0.5, 0.0), cut=(2,)), group((0.5, 1.0), (0.5, 0.0), (0.5, 0.0))]
    batch = make_batch(groups, config("of_length_alone"), names=NAMES, step=1)
    assert batch.advantages.tolist() == [-0.5, 0.5, 0, 0, 0, 0]
    assert batch.weights.tolist() == [1, 1, 0, 0, 0, 0], "truncated, and a group without variance, as ever"
    assert [is_barren(one, config("of_length_alone"), names=NAMES) for one in groups] == [False, True]


def test_rounding_of_equal_scores_is_no_variance():
    own = config("leave_one_out", length={"weight": 0.1}, format={"weight": 0.9})
    build_rewards(own.reward)
    assert is_barren(group(*[(0.123, 0.77)] * 7), own, names=NAMES), "the function gives 1e-16"
    assert not is_barren(group((0.123, 0.77), *[(0.123, 0.77001)] * 6), own, names=NAMES)


def test_shares_of_the_gradient_are_per_component_only_where_the_function_says_so():
    groups = [group((0.1, 1.0), (0.9, 0.0), (0.5, 1.0))]
    found = {
        name: experience_metrics(groups, config(name, grpo={"aggregation": "sequence"}), names=NAMES, step=1)
        for name in (None, "builtin", "builtin_total")
    }
    shares = {
        name: {key: value for key, value in metrics.items() if key.startswith("gradient/") and key.count("/") == 1}
        for name, metrics in found.items()
    }
    assert shares["builtin"] == pytest.approx(shares[None])
    assert set(shares["builtin_total"]) == {"gradient/advantage_function"}


def test_what_the_function_does_to_its_columns_stays_with_it():
    rewards, valid = torch.rand(3, 4, 2), torch.ones(3, 4, 2, dtype=torch.bool)
    cut = torch.zeros(3, 4, dtype=torch.bool)
    found = advantages_of(rewards, valid, cut, config("meddles"), names=NAMES)
    expected = advantages_of(rewards, valid, cut, config("builtin"), names=NAMES)
    assert torch.equal(found.total, expected.total) and found.included.all() and valid.all()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("builtin", None),
        ("builtin_total", None),
        ("of_length_alone", None),
        ("missing", "cannot be imported"),
        ("torch", "is not a function"),
        ("raises", "raises AttributeError: 'RewardColumns' object has no attribute 'scores' for a group of scores"),
        ("a_list", "returns list, not a torch.Tensor"),
        ("wrong_shape", r"returns shape \(1, 5\), not \[P, G\] = \(1, 6\) or \[P, G, R\] = \(1, 6, 2\)"),
        ("whole_numbers", "returns int64, not floating-point numbers"),
        ("without_floor", "not finite for a group of equal scores"),
        ("over_the_others", "not finite for a group with one rollout that takes part"),
        ("in_fp32", r"gives .* for a group of equal scores, which is rounding: compute in fp64"),
        ("whitened_over_the_batch", "beside other groups than alone"),
        ("noisy", "beside other groups than alone"),
    ],
)
def test_a_function_is_checked_before_there_are_rollouts(name, part):
    """`build_rewards` is what the rollout host calls first."""
    if part is None:
        build_rewards(config(name).reward)
        return
    with pytest.raises(ConfigError, match=rf"'reward.advantage_function' = '{HERE}:{name}': .*{part}") as caught:
        build_rewards(config(name).reward)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "part"),
    [
        (
            {"combine": "rewards"},
            r"reward\.combine.*has no effect beside reward\.advantage_function.*back to advantages",
        ),
        ({"normalizer": "range"}, r"reward\.normalizer.*back to zscore"),
        ({"length": {"normalizer": "none"}}, r"reward\.length\.normalizer.*back to null"),
        ({"functions": [{"path": "math:sqrt", "name": "advantage_function"}]}, "rename"),
    ],
)
def test_settings_that_it_leaves_without_effect_are_refused(section, part):
    with pytest.raises(ConfigError, match=part):
        build_rewards(config("builtin", **section).reward)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("fails_above_one", "raises KeyError: 'above\\\\none'; prompts: p0, p1, p2$"),
        ("infinite_above_one", r"not finite \(or above 1e\+12\); prompts: p1$"),
    ],
)
def test_a_function_that_fails_later_ends_the_run_with_the_prompts_in_one_line(name, part):
    build_rewards(config(name).reward)
    groups = [group((0.1, 1.0), (0.9, top), prompt=f"p{place}") for place, top in enumerate((1.0, 2.0, 0.0))]
    with pytest.raises(ConfigError, match=rf"{HERE}:{name}': .*{part}") as caught:
        make_batch(groups, config(name), names=NAMES, step=1)
    assert "\n" not in str(caught.value)


def test_it_is_in_the_resolved_config(tmp_path):
    save_config(config("builtin"), tmp_path / "config.yaml")
    assert load_config(tmp_path).reward.advantage_function == f"{HERE}:builtin"
