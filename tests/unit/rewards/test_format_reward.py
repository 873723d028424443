from dataclasses import replace

import pytest

from megatron_lwz.config.sections import FormatReward
from megatron_lwz.data.templates import instruction
from megatron_lwz.rewards.format import FormatComponent
from megatron_lwz.types import FinishReason
from tests.support.scoring import prompt, rollout, score

LINE = "the quick brown fox jumps over the lazy dog and runs far into the dark wood"
OTHER = "a small boat leaves the harbour at dawn while gulls cry above its single white sail"


def one(text, section=None, template="think", **rollout_keys):
    return score(FormatComponent(section or FormatReward()), prompt(template=template), rollout(text, **rollout_keys))[
        0
    ]


def test_structure_is_worth_one():
    good = one("<think>a b c</think>\n<answer>text</answer>", stop="</answer>")
    assert good.value == 1.0 and good.valid
    assert good.details == {"valid": 1.0, "duplicates": 0.0, "copied": 0.0, "think_length": 3.0, "answer_closed": 1.0}
    bad = one("<answer>text</answer>")
    assert (bad.value, bad.valid, bad.details["valid"]) == (0.0, True, 0.0)
    assert one("<answer>text</answer>", template="direct").value == 1.0


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ({"stop": "</answer>"}, 1.0),
        ({}, 0.0),
        ({"finish": FinishReason.LENGTH}, 0.0),
        ({"stop": "<|user|>"}, 0.0),
    ],
)
def test_an_open_answer_is_fine_only_at_its_own_stop(keys, value):
    scored = one("<think>a</think><answer>text", **keys)
    assert (scored.value, scored.details["answer_closed"]) == (value, value)


def test_near_duplicate_paragraphs_cost_their_share():
    repeated = f"<think>a</think><answer>{LINE}\n{OTHER}\n{LINE}, again\n{LINE}</answer>"
    scored = one(repeated)
    assert (scored.value, scored.details["duplicates"]) == (0.75, 0.5)
    assert one(repeated, FormatReward(duplicate_penalty=0.0)).value == 1.0
    assert one(repeated, FormatReward(duplicate_threshold=1.0)).details["duplicates"] == 0.25
    assert one(repeated.replace("<think>a</think>", "")).value == -0.25
    assert one(f"<think>{LINE}\n{LINE}</think><answer>{LINE}</answer>").value == 1.0


def test_a_long_paragraph_is_compared_sentence_by_sentence():
    loop = "<think>a</think><answer>" + f"{LINE.capitalize()}. " * 30 + "</answer>"
    assert one(loop).details["duplicates"] == pytest.approx(29 / 30)
    assert one(loop, FormatReward(longest_paragraph=0)).value == 1.0


@pytest.mark.parametrize(("question", "run"), [("Write.", 24), ("写一封信。", 40)])
def test_what_is_copied_from_the_instruction_is_measured_and_may_be_subtracted(question, run):
    asked = replace(prompt(template="think"), text=question)
    given = instruction(asked)
    copied = given[given.index("<think>") + 7 : given.index("</think>")]
    own = "我 们 昨 天 从 海 边 回 来" if "写" in question else "we came home from the sea at last and slept"
    for text, least, most in (
        (copied, 0.8, 1.0),
        (f"{copied} {own}", 0.4, 0.9),
        (own, 0.0, 0.0),
        (copied[:run], 0.0, 1.0),
    ):
        reply = rollout(f"<think>{text}</think><answer>{text}</answer>", stop="</answer>")
        (scored,) = score(FormatComponent(FormatReward(copied_penalty=0.5)), asked, reply)
        assert least <= scored.details["copied"] <= most
        assert scored.value == pytest.approx(1 - 0.5 * scored.details["copied"])
        (plain,) = score(FormatComponent(FormatReward()), asked, reply)
        assert plain.value == 1.0 and plain.details == scored.details
