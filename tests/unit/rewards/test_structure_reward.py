import logging
from dataclasses import replace

import pytest

from megatron_lwz.config.sections import RewardSection, StructureReward
from megatron_lwz.rewards.composite import build_rewards, component_sections
from megatron_lwz.rewards.structure import StructureComponent, read_wishes
from tests.support.scoring import prompt, rollout, score

ALL = StructureReward(checks=("headings", "numbering", "lists", "asked"))


def one(answer, section=ALL, asked=None):
    row = replace(prompt(), extra={} if asked is None else {"structure": asked})
    return score(StructureComponent(section), row, rollout(f"<think>t</think><answer>{answer}</answer>"))[0]


def test_only_checks_with_an_occasion_count():
    assert one("Plain prose.").value == 1.0
    assert one("Plain prose.").details == {"structure_faults": 0.0}
    broken = one("# A\ntext\n### B\n- a\n* b\n\n1. x\n2. y")
    assert broken.details == {
        "structure_headings": 0.5,
        "structure_numbering": 1.0,
        "structure_lists": 0.75,
        "structure_faults": 2.0,
    }
    assert broken.value == pytest.approx(0.75)
    assert one("# A\ntext\n### B\n- a\n* b", StructureReward(checks=("lists",))).value == 0.5
    assert one("").value == 0.0


def test_what_the_row_asks_for():
    asked = {"headings": {"lower": 2, "upper": 3}, "lists": {"lower": 0, "upper": 0}}
    assert one("# A\ntext\n# B\ntext", asked=asked).details["structure_asked"] == 1.0
    assert one("text\n- a\n- b", StructureReward(checks=("asked",)), asked).value == 0.0
    assert one("text", StructureReward(checks=("headings",)), asked).value == 1.0


@pytest.mark.parametrize(
    "wishes",
    [3, [], {"tables": {"lower": 1, "upper": 2}}, {"lists": 3}, {"lists": {"lower": 2, "upper": 1}},
     {"lists": {"lower": -1, "upper": 1}}, {"lists": {"lower": "1", "upper": 2}}, {"lists": {"lower": True, "upper": 2}}],
)  # fmt: skip
def test_wishes_that_cannot_be_read_are_told_and_left_out(wishes, caplog):
    with pytest.raises(ValueError, match=r"must|knows"):
        read_wishes(wishes)
    with caplog.at_level(logging.WARNING):
        assert one("text", asked=wishes).value == 1.0
    assert "key 'structure'" in caplog.text


def test_it_is_a_component_only_when_asked_for():
    section = RewardSection(structure=ALL)
    assert [reward.name for reward in build_rewards(section)] == ["length", "format", "structure"]
    assert list(component_sections(section)) == ["length", "format", "structure"]
