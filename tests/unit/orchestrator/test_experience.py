"""Groups → advantages → flat batch: what is trained on is what was written, and masks keep out what they must."""

import math
from dataclasses import replace

import pytest
import torch

from megatron_lwz.config import validate
from megatron_lwz.orchestrator.experience import (
    Experience,
    advantages_of,
    experience_metrics,
    is_barren,
    make_batch,
    sameness_metrics,
    staleness_metrics,
)
from megatron_lwz.training.grpo_batches import select, split
from megatron_lwz.types import (
    LARGEST_SCORE,
    ComponentScore,
    FinishReason,
    Group,
    Prompt,
    Rollout,
    VersionSegment,
    WeightVersion,
)

NAMES = ("length", "format")


def rollout(index, *, length=3, reason=FinishReason.STOP):
    tokens = tuple(range(100 * index, 100 * index + length))
    logprobs = tuple(-0.5 - 0.01 * i for i in range(length))
    return Rollout(f"0-{index}", "p", index, (1, 2), tokens, logprobs, (), reason, "text")


def group(scores, **truncated):
    rollouts = tuple(
        rollout(i, length=3 + i, reason=FinishReason.LENGTH if i in truncated.get("cut", ()) else FinishReason.STOP)
        for i in range(len(scores))
    )
    table = tuple({"length": ComponentScore(a), "format": ComponentScore(b)} for a, b in scores)
    return Group(0, Prompt("p", "write"), rollouts, table, admitted=1)


def make_experience(groups, config, *, names, step):
    parts = (make(groups, config, names=names, step=step) for make in (make_batch, experience_metrics))
    return Experience(*parts)


def experience(groups, **grpo):
    config = validate({"grpo": {"group_size": 4, **grpo}})
    return make_experience(groups, config, names=NAMES, step=1)


def test_batch_holds_prompts_responses_and_behaviour_logprobs_in_order():
    batch = experience([group([(0.1, 0.0), (0.9, 1.0), (0.5, 1.0)])]).batch
    assert batch.lengths() == [5, 6, 7]
    assert batch.tokens[:5].tolist() == [1, 2, 0, 1, 2]
    assert batch.tokens[5:11].tolist() == [1, 2, 100, 101, 102, 103]
    assert batch.behaviour_logprobs[5:11].tolist() == pytest.approx([0, 0, -0.5, -0.51, -0.52, -0.53])


def test_better_scores_get_larger_advantages_that_sum_to_zero():
    advantages = experience([group([(0.1, 0.0), (0.9, 1.0), (0.5, 1.0)])]).batch.advantages
    assert advantages[1] > advantages[2] > advantages[0]
    assert advantages.sum().item() == pytest.approx(0, abs=1e-6)


def test_truncated_rollouts_are_masked_out_of_loss_and_statistics():
    scores = [(0.0, 0.0), (1.0, 1.0), (0.0, 0.0)]
    masked = experience([group(scores, cut=(2,))], truncated="mask").batch
    assert masked.weights.tolist() == [1, 1, 0]
    assert masked.advantages.tolist() == pytest.approx([-1, 1, 0], abs=1e-4)
    kept = experience([group(scores, cut=(2,))], truncated="keep").batch
    assert kept.weights.tolist() == [1, 1, 1]
    penalised = experience([group(scores, cut=(2,))], truncated="penalty", truncation_penalty=0.5).batch
    assert penalised.advantages[2] < penalised.advantages[0] < penalised.advantages[1]


def test_groups_without_variance_leave_the_denominator_only_when_dropped():
    flat = [group([(0.5, 1.0), (0.5, 1.0)])]
    dropped = experience(flat, zero_variance="drop")
    assert dropped.batch.weights.tolist() == [0, 0]
    assert dropped.metrics["rollout/zero_variance_groups"] == 1
    assert experience(flat, zero_variance="keep").batch.weights.tolist() == [1, 1]


@pytest.mark.parametrize("combine", ["advantages", "rewards"])
@pytest.mark.parametrize("normalizer", ["zscore", "range", "none"])
def test_the_largest_scores_give_finite_advantages_and_larger_ones_none(normalizer, combine):
    large = LARGEST_SCORE
    reward = {"normalizer": normalizer, "combine": combine, "violators": {"length": 0.0}}
    config = validate({"reward": reward, "grpo": {"truncated": "penalty", "truncation_penalty": 3e38}})
    groups = [group([(large, -large), (-large, large), (1e39, 0.0), (math.nan, 1.0)])]
    found = make_experience(groups, config, names=NAMES, step=1)
    assert found.batch.advantages.isfinite().all() and found.batch.advantages.abs().max() > 0
    assert found.metrics["reward_masked/length"] == 0.5 and all(map(math.isfinite, found.metrics.values()))


def test_a_group_is_barren_when_nobody_is_better():
    config = validate({"grpo": {"group_size": 4}})
    assert is_barren(group([(0.5, 1.0), (0.5, 1.0)]), config, names=NAMES)
    assert not is_barren(group([(0.5, 1.0), (0.4, 1.0)]), config, names=NAMES)
    assert is_barren(group([(0.5, 1.0), (0.4, 1.0)], cut=(0,)), config, names=NAMES), "one rollout is left"


def test_staleness_counts_groups_and_tokens():
    versions = (VersionSegment(0, WeightVersion(3)), VersionSegment(1, WeightVersion(4)))
    old = replace(group([(0.5, 1.0)]), admitted=4)
    old = replace(old, rollouts=(replace(old.rollouts[0], versions=versions),))
    new = replace(group([(0.5, 1.0)]), admitted=5)
    new = replace(new, rollouts=(replace(new.rollouts[0], versions=(VersionSegment(0, WeightVersion(4)),)),))
    assert staleness_metrics([old, new], 5) == {
        "rollout/staleness": 0.5,
        "rollout/staleness/max": 1.0,
        "rollout/token_staleness": 1 / 6,
        "rollout/mixed": 0.5,
    }


def test_sameness_is_of_the_answers_of_a_group_and_the_mean_over_groups():
    tide, baker = "the tide comes in over grey stones", "a baker in our street lights his oven"

    def written(*texts):
        found = [replace(rollout(place), text=text) for place, text in enumerate(texts)]
        return Group(0, Prompt("p", "write"), tuple(found), ({},) * len(texts), admitted=1)

    thought = [f"<think>{other}</think><answer>{tide}</answer>" for other in (tide, baker)]
    assert sameness_metrics([written(*thought)]) == {"rollout/sameness": 1}, "thinking does not count"
    assert sameness_metrics([written(tide, baker), written(tide, tide), written(tide)]) == {"rollout/sameness": 0.5}
    assert sameness_metrics([written(tide)]) == {}
    assert experience([group([(0.5, 1.0), (0.4, 1.0)])]).metrics["rollout/sameness"] == 1, "always there"


def test_split_and_select_keep_every_sequence_whole():
    batch = experience([group([(0.1, 0.0), (0.9, 1.0), (0.5, 1.0), (0.2, 0.3)])]).batch
    first, second = split(batch, 2)
    assert first.lengths() == [5, 7] and second.lengths() == [6, 8]
    again = select(batch, range(4))
    assert all(torch.equal(vars(again)[name], value) for name, value in vars(batch).items())


def test_rescaling_by_length_gives_a_wrong_length_no_credit_for_the_rest():
    config = validate({"grpo": {"group_size": 4}, "reward": {"length": {"use": "rescale"}}})
    groups = [group([(0.0, 1.0), (1.0, 1.0), (1.0, 0.0)])]
    advantages = make_experience(groups, config, names=NAMES, step=1).batch.advantages
    assert advantages.tolist() == pytest.approx([-0.7071, 1.4142, -0.7071], abs=1e-3)


def test_advantages_are_a_function_of_columns_and_config_alone():
    rewards = torch.tensor([[[0.1, 0.0], [0.9, 1.0], [0.5, 1.0]]])
    valid, truncated = torch.ones(1, 3, 2, dtype=torch.bool), torch.tensor([[False, False, True]])
    paper = advantages_of(rewards, valid, truncated, validate({}), names=NAMES)
    torch.testing.assert_close(paper.total, torch.tensor([[-1.0, 1.0, 0.0]]), atol=1e-4, rtol=0)
    assert paper.included.tolist() == [[True, True, False]] and paper.names == NAMES
    torch.testing.assert_close(paper.parts.sum(-1).float(), paper.total)
    heavy = validate(
        {"reward": {"format": {"weight": 0}, "length": {"normalizer": "none"}}, "grpo": {"truncated": "keep"}}
    )
    found = advantages_of(rewards, valid, truncated, heavy, names=NAMES)
    torch.testing.assert_close(found.total, torch.tensor([[-0.4, 0.4, 0.0]]))


def test_rules_read_the_scores_as_they_came_in_and_win_over_the_average():
    scores = [(1.0, 0.0), (0.2, 1.0), (0.3, 1.0), (0.4, 1.0)]
    tree = {"grpo": {"group_size": 4}, "reward": {"violators": {"format": 1.0}}}
    free = validate(tree | {"reward": {"length": {"weight": 5}}})
    ruled = validate(tree | {"reward": {"length": {"weight": 5}, "violators": {"format": 1.0}}})
    before = make_experience([group(scores)], free, names=NAMES, step=1)
    after = make_experience([group(scores)], ruled, names=NAMES, step=1)
    assert before.batch.advantages[0] > 1 and "rollout/violators" not in before.metrics
    assert after.batch.advantages[0].item() == pytest.approx(-0.1, abs=1e-6)
    assert after.metrics["rollout/violators"] == 0.25 and after.metrics["gradient/violators"] > 0
    rescaled = validate({"reward": {"violators": {"length": 0.5}, "length": {"use": "rescale"}}})
    found = make_experience([group([(0.0, 1.0), (1.0, 0.5), (1.0, 0.2)])], rescaled, names=NAMES, step=1)
    assert found.metrics["rollout/violators"] == pytest.approx(1 / 3), "the length is masked as a column, not as a rule"


def test_the_gradients_shares_are_logged_by_component_and_by_length():
    scores = [(0.1, 0.0), (0.9, 1.0), (0.5, 1.0), (0.2, 0.3)]
    config = validate({"rollout": {"max_new_tokens": 16}, "logging": {"length_buckets": [4]}})
    metrics = make_experience([group(scores)], config, names=NAMES, step=1).metrics
    shares = {name: value for name, value in metrics.items() if name.startswith("gradient")}
    titles = ("0-4", "4-more")
    assert set(shares) == {
        *(f"gradient/{name}" for name in NAMES),
        *(f"gradient_length/{title}" for title in titles),
        *(f"gradient/{name}/{title}" for name in NAMES for title in titles),
    }
    assert shares["gradient/length"] + shares["gradient/format"] == pytest.approx(1)
    assert shares["gradient_length/0-4"] + shares["gradient_length/4-more"] == pytest.approx(1)
    assert shares["gradient/length/0-4"] + shares["gradient/length/4-more"] == pytest.approx(shares["gradient/length"])
    quarters = make_experience(
        [group(scores)], validate({"rollout": {"max_new_tokens": 16}}), names=NAMES, step=1
    ).metrics
    assert [name for name in quarters if name.startswith("gradient_length/")] == [
        f"gradient_length/{title}" for title in ("0-4", "4-8", "8-12", "12-16")
    ]


def test_a_masked_component_of_one_group_is_counted_and_the_others_go_on():
    whole, holed = group([(0.1, 0.0), (0.9, 1.0)]), group([(0.1, 0.0), (0.9, 1.0)])
    masked = tuple({**row, "length": ComponentScore(0.0, valid=False)} for row in holed.scores)
    holed = Group(1, holed.prompt, holed.rollouts, masked, admitted=1)
    found = make_experience([whole, holed], validate({}), names=NAMES, step=1)
    assert found.metrics["rollout/masked_groups/length"] == 1 and found.metrics["rollout/masked_groups/format"] == 0
    assert found.metrics["reward_masked/length"] == 0.5
    assert found.batch.advantages.tolist() == pytest.approx([-1, 1, -1, 1], abs=1e-4)
