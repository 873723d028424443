import asyncio

import pytest
import torch

from megatron_lwz.config import validate
from megatron_lwz.config.load import load_config, save_config
from megatron_lwz.config.sections import FormatReward, JudgeReward, JudgeSection, LengthReward, RewardSection
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.composite import (
    build_rewards,
    component_normalizers,
    component_weights,
    find_violators,
    reward_metrics,
    score_tensors,
    shuffle_scores,
)
from megatron_lwz.rollout.scoring import close_rewards
from megatron_lwz.types import ClosableReward, ComponentScore, Group, ReportingReward
from tests.support.scoring import prompt, rollout, score

HERE = "tests.unit.rewards.user_rewards"


def functions(*names):
    return RewardSection(functions=tuple(f"{HERE}:{name}" for name in names))


def test_components_are_length_format_then_the_users():
    section = functions("words", "holes")
    rewards = build_rewards(section)
    names = [r.name for r in rewards]
    assert names == ["length", "format", "words", "holes"]


def test_every_component_has_its_own_weight_and_normaliser():
    section = RewardSection(
        length=LengthReward(weight=2, normalizer="range"),
        format=FormatReward(weight=0.5),
        functions=(f"{HERE}:words", {"path": f"{HERE}:holes", "name": "gaps", "weight": 0.25, "normalizer": "none"}),
        judges=(JudgeReward(kind="rubric", weight=3),),
    )
    names = [reward.name for reward in build_rewards(section, judge=JudgeSection(url="http://127.0.0.1:1", model="m"))]
    assert names == ["length", "format", "rubric", "words", "gaps"]
    assert component_weights(section, names).tolist() == [2, 0.5, 3, 1, 0.25]
    assert component_normalizers(section, names) == ["range", "zscore", "zscore", "zscore", "none"]
    averaged = RewardSection(functions=(f"{HERE}:words",), combine="rewards", normalizer="range")
    assert component_normalizers(averaged, ["length", "words"]) == "range"


def test_functions_and_judges_survive_the_saved_config(tmp_path):
    config = validate(
        {
            "reward": {
                "functions": [f"{HERE}:words", {"path": f"{HERE}:holes", "weight": 2}],
                "judges": [{"kind": "pairwise", "name": "duel"}],
                "violators": {"duel": 0.5},
            }
        }
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path) == config
    found = load_config(tmp_path, [f"reward.functions=[{HERE}:short]"]).reward.functions
    assert [(entry.path, entry.weight) for entry in found] == [(f"{HERE}:short", 1.0)]
    with pytest.raises(ConfigError, match=r"reward\.judges\.0\.wieght.*did you mean 'weight'"):
        validate({"reward": {"judges": [{"kind": "rubric", "wieght": 2}]}})


def test_a_violator_is_below_a_floor_with_a_score_that_counts():
    rewards = torch.tensor([[[0.4, 1.0], [0.6, 0.0], [0.4, 1.0], [0.6, 1.0]]])
    valid = torch.tensor([[[True, True], [True, True], [False, True], [True, True]]])
    section = RewardSection(violators={"length": 0.5, "format": 1.0})
    assert find_violators(rewards, valid, ["length", "format"], section).tolist() == [[True, True, False, False]]
    assert not find_violators(rewards, valid, ["length", "format"], RewardSection()).any()


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"violators": {"lenght": 1.0}}, r"reward\.violators.*is no component: choose among format, length"),
        ({"judges": [{"kind": "rubric"}, {"kind": "rubric"}]}, r"reward\.judges.*already a component named 'rubric'"),
        ({"judges": [{"kind": "rubric", "name": "a/b"}]}, r"reward\.judges.*must not hold '/'"),
        ({"judges": [{"kind": "rubric"}]}, r"judge\.url.*name the judge's server"),
        ({"combine": "rewards", "length": {"normalizer": "none"}}, r"reward\.length\.normalizer.*normalised once"),
        ({"length": {"weight": 0}, "format": {"weight": 0}}, r"weight 0 for every component"),
    ],
)
def test_compositions_that_cannot_be_are_one_line(section, part):
    with pytest.raises(ConfigError, match=part) as caught:
        build_rewards(validate({"reward": section}).reward)
    assert "\n" not in str(caught.value)


def test_user_functions_may_be_async_and_mask_what_they_cannot_score():
    words, holes = build_rewards(functions("words", "holes"))[2:]
    rollouts = [rollout("a b c", index=i) for i in range(4)]
    assert [s.value for s in score(words, prompt(), *rollouts)] == [3.0] * 4
    found = score(holes, prompt(), *rollouts)
    assert [s.valid for s in found] == [True, False, False, True]
    assert (found[0].value, found[3].value) == (1.0, 0.25)


def test_a_number_that_fp32_training_cannot_use_is_masked_for_its_rollout_alone():
    (component,) = build_rewards(functions("huge"))[2:]
    found = score(component, prompt(), *(rollout("a", index=i) for i in range(4)))
    assert [s.valid for s in found] == [False, False, False, True]


@pytest.mark.parametrize("name", ["broken", "short"])
def test_a_failing_function_masks_its_group_and_is_logged(name, caplog):
    (component,) = build_rewards(functions(name))[2:]
    scores = score(component, prompt(), rollout("a"), rollout("b"))
    assert [s.valid for s in scores] == [False, False]
    assert f"reward {name} failed on prompt p1" in caplog.text


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("nothing", "package.module:function"),
        ("no_such_module:f", "cannot be imported (ModuleNotFoundError"),
        ("tests.unit.rewards.fails_on_import:f", "cannot be imported (ZeroDivisionError"),
        ("tests.unit.rewards.exits_on_import:f", "cannot be imported (SystemExit"),
        (f"{HERE}:missing", "cannot be imported"),
        (f"{HERE}:NOT_A_FUNCTION", "is not a function"),
        (f"{HERE}:length", "already a component named 'length'"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_a_config_error(path, part):
    with pytest.raises(ConfigError, match=r"reward\.functions") as caught:
        build_rewards(RewardSection(functions=(path,)))
    assert part in str(caught.value)


def test_components_say_by_protocol_that_they_report_and_close():
    """The judge's component does both, the length's neither; the user's own need to know nothing of it."""
    section = RewardSection(judges=(JudgeReward(kind="rubric"),), functions=(f"{HERE}:words",))
    length, _, judge, function = build_rewards(section, None, JudgeSection(url="http://127.0.0.1:9", model="m"))
    assert isinstance(judge, ClosableReward) and isinstance(judge, ReportingReward)
    assert not any(isinstance(plain, (ClosableReward, ReportingReward)) for plain in (length, function))
    counted = reward_metrics([length, judge, function])
    assert counted["judge/total_asked"] == 0.0 and counted == judge.metrics()
    asyncio.run(close_rewards([length, judge, function]))


def test_scores_become_tensors_with_their_validity():
    def group(number, *rows):
        return Group(number, prompt(), tuple(rollout("x") for _ in rows), rows, admitted=0)

    groups = [
        group(0, {"length": ComponentScore(0.5), "format": ComponentScore(1.0)}, {"format": ComponentScore(0.0)}),
        group(1, {"length": ComponentScore(9.0, valid=False), "format": ComponentScore(-0.5)}, {}),
    ]
    rewards, valid = score_tensors(groups, ["length", "format"])
    assert rewards.dtype == torch.float32 and valid.dtype == torch.bool
    assert rewards.tolist() == [[[0.5, 1.0], [0.0, 0.0]], [[0.0, -0.5], [0.0, 0.0]]]
    assert valid.tolist() == [[[True, True], [False, True]], [[False, True], [False, False]]]


def test_shuffled_scores_are_the_same_scores_elsewhere():
    rewards = torch.arange(24.0).view(3, 4, 2)
    valid = rewards % 5 != 0
    shuffled, shuffled_valid = shuffle_scores(rewards, valid, seed=1, step=2)
    assert not torch.equal(shuffled, rewards)
    assert torch.equal(shuffled.view(-1, 2).sort(0).values, rewards.view(-1, 2))
    assert torch.equal(shuffled[..., 1], shuffled[..., 0] + 1)  # a rollout's components stay together
    assert torch.equal(shuffled_valid, shuffled % 5 != 0)
    assert torch.equal(shuffle_scores(rewards, valid, seed=1, step=2)[0], shuffled)
    assert not torch.equal(shuffle_scores(rewards, valid, seed=1, step=3)[0], shuffled)
