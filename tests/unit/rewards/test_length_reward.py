import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lwz.config.sections import LengthReward
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.length import LengthComponent, length_reward
from megatron_lwz.types import FinishReason, LengthRange
from tests.unit.rewards.helpers import prompt, rollout, score


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
