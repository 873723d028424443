import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.config.sections import LengthReward
from megatron_lwz.data.text.grammar import parse_response
from megatron_lwz.data.text.length import count_units
from megatron_lwz.errors import ConfigError
from megatron_lwz.evaluation.text_metrics import range_score
from megatron_lwz.rewards.length import LengthComponent, LengthMeter, length_reward, score_length
from megatron_lwz.rewards.rescaling import rescale_by
from megatron_lwz.types import FinishReason, LengthRange
from tests.support.scoring import prompt, rollout, score


def answer(count, think="one two three"):
    return f"<think>{think}</think><answer>{'word ' * count}</answer>"


def test_the_papers_piecewise_formula():
    asked = LengthRange(100, 200)
    values = [length_reward(n, asked, 400) for n in (0, 50, 99, 100, 150, 200, 201, 300, 400, 500)]
    assert values == [0, 0.5, 0.99, 1, 1, 1, 199 / 200, 0.5, 0, 0]
    assert length_reward(500, asked, 400, clip=False) == -0.5


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50), st.integers(0, 300))
def test_any_integer_range_gives_a_reward_that_is_1_just_inside(lower, width, room, length):
    upper = max(lower + width, 1)
    asked = LengthRange(lower, upper)
    reward = length_reward(length, asked, upper + room)
    assert 0 <= reward <= 1
    assert (reward == 1) == (lower <= length <= upper)


def test_only_the_answer_counts_and_details_say_so():
    component = LengthComponent(LengthReward(maximum=100))
    inside, short, none, cut = score(
        component,
        prompt(10, 20),
        rollout(answer(12)),
        rollout("<answer>five short words are here"),
        rollout("words " * 15),
        rollout("<think>x</think><answer>" + "word " * 60, finish=FinishReason.LENGTH),
    )
    assert (inside.value, inside.details) == (1.0, {"words": 12.0, "in_range": 1.0})
    assert (short.value, short.details) == (0.5, {"words": 5.0, "in_range": 0.0})
    assert (none.value, none.details["words"]) == (0.0, 0.0)
    assert (cut.value, cut.details["words"]) == (0.5, 60.0)
    assert all(s.valid for s in (inside, short, none, cut))


def test_units_and_thinking_are_settings():
    text = "<think>a b</think><answer>写 two x1</answer>"
    for section, expected in [
        (LengthReward(), 2),
        (LengthReward(count_thinking=True), 4),
        (LengthReward(unit="characters"), 6),
    ]:
        assert score(LengthComponent(section), prompt(1, 9), rollout(text))[0].details["words"] == expected

    class Letters:
        def encode(self, text):
            return list(text)

    (scored,) = score(LengthComponent(LengthReward(unit="tokens"), Letters()), prompt(1, 9), rollout(text))
    assert scored.details["words"] == 8
    with pytest.raises(ConfigError, match=r"reward\.length\.unit"):
        LengthComponent(LengthReward(unit="tokens"))


def test_no_range_is_masked_and_l_max_within_the_range_is_refused():
    component = LengthComponent(LengthReward(maximum=20))
    (scored,) = score(component, prompt(), rollout(answer(12)))
    assert not scored.valid and scored.details == {"words": 12.0}
    with pytest.raises(ConfigError, match=r"reward\.length\.maximum.*20.*'p1'"):
        score(component, prompt(10, 20), rollout(answer(12)))


@given(st.integers(0, 400), st.integers(0, 100), st.integers(0, 100))
def test_the_longbench_shape_is_the_benchmarks_own_score(length, lower, width):
    asked = LengthRange(lower, max(lower + width, 1))
    section = LengthReward(shape="longbench")
    assert score_length(length, asked, section) == pytest.approx(range_score(asked, length) / 100)


def test_powers_make_the_sides_unequal_and_leave_the_range_alone():
    asked, section = LengthRange(100, 200), LengthReward(maximum=400, under_power=2.0, over_power=0.5)
    values = [score_length(n, asked, section) for n in (50, 150, 300, 400)]
    assert values == [0.25, 1, pytest.approx(0.5**0.5), 0]
    assert score_length(500, asked, LengthReward(maximum=400, clip=False, over_power=2.0)) == -0.5


def test_a_relative_l_max_falls_as_steeply_for_every_prompt():
    section = LengthReward(relative_maximum=2.0, maximum=100)
    for upper in (200, 2000):
        assert score_length(upper + upper // 2, LengthRange(upper, upper), section) == 0.5
    (scored,) = score(LengthComponent(section), prompt(100, 200), rollout(answer(300)))
    assert scored.value == 0.5, "an L_max for all is not looked at"


PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "word ",
    "don't",
    "中文",
    "<",
    "ans",
    "wer>",
    "</",
    " ",
    "x1",
    "\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.data(), st.sampled_from(["think", "direct"]))
@settings(max_examples=400)
def test_the_meter_ends_where_the_component_measures_for_any_text_and_chunking(pieces, data, template):
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    for unit in ("words", "characters"):
        meter = LengthMeter(template, unit)
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            meter.feed(text[start:end])
        parsed = meter.finish()
        assert parsed == parse_response(text, template)
        assert meter.answer == count_units(parsed.answer or "", unit)
        assert meter.thinking == count_units(parsed.think or "", unit)


def test_the_meter_counts_while_the_answer_grows():
    meter = LengthMeter()
    counts = []
    for piece in ("<think>one two</th", "ink> <answer>a", " b", "cd", " e</answ", "er>"):
        meter.feed(piece)
        counts.append((meter.thinking, meter.answer))
    assert counts == [(2, 0), (2, 1), (2, 2), (2, 2), (2, 3), (2, 3)]


def test_rescaling_multiplies_the_others_and_masks_the_length():
    names = ["length", "format", "writing"]
    rewards = torch.tensor([[[0.5, 1.0, -2.0], [1.0, 0.8, 3.0], [0.0, 1.0, -1.0], [0.2, 1.0, 1.0]]])
    valid = torch.ones(1, 4, 3, dtype=torch.bool)
    valid[0, 3, 0] = False
    scaled, kept = rescale_by(rewards, valid, names, "length")
    expected = [[0.5, 0.5, -3.0], [1.0, 0.8, 3.0], [0.0, 0.0, -2.0], [0.2, 1.0, 1.0]]
    torch.testing.assert_close(scaled, torch.tensor([expected]))
    assert not kept[..., 0].any() and kept[..., 1:].all()
