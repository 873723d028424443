"""Criteria that the judge writes for a prompt: once, for all siblings, kept for the next start; and ever harder ones."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from megatron_lwz.config.sections import JudgeReward, JudgeSection, RewardSection
from megatron_lwz.rewards.composite import with_fixed_criteria
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_components import judge_components
from megatron_lwz.rewards.judge_criteria import CriteriaComponent, CurriculumComponent
from megatron_lwz.types import Prompt, Rollout
from tests.support.scoring import rollout
from tests.support.scripted_server import KEY, Scripted, serving

PROMPT = Prompt("p1", "Write about a river.", language="en")
LISTED = ["The river is heard.", "Someone crosses it.", "It ends at night."]


def wrote(*answers: str) -> list[Rollout]:
    return [rollout(f"<think>secret</think><answer>{text}</answer>", index=i) for i, text in enumerate(answers)]


def marks(value: float, count: int) -> str:
    return json.dumps({"reason": "heard", **{str(number): value for number in range(1, count + 1)}})


def editor(prompt: str, number: int) -> str:
    """Writes three criteria, another list every time, and gives more to a silver river."""
    if '"criteria"' in prompt:
        return json.dumps({"criteria": [f"{text} ({number})" for text in LISTED]})
    return marks(9 if "silver" in prompt else 3, 3)


def judged(
    server: Scripted,
    prompt: Prompt,
    rollouts: list[Rollout],
    *,
    cache=None,
    one_by_one=False,
    kind="criteria",
    **section,
):
    """(scores, metrics) of a new component and judge, as a start of a run has them."""

    async def main():
        groups = rollouts if isinstance(rollouts[0], list) else None
        settings = JudgeSection(url=server.url, model="judge", backoff=0.01, malformed_retries=0, cache=cache)
        (component,) = judge_components([JudgeReward(kind=kind, **section)], Judge.as_reward(settings, KEY))
        try:
            if one_by_one:
                found = await asyncio.gather(*(component.score_one(prompt, rollout) for rollout in rollouts))
                return component.settle(found), component.metrics()
            if groups is not None:
                return [await component.score(prompt, group) for group in groups], component.metrics()
            return await component.score(prompt, rollouts), component.metrics()
        finally:
            await component.close()

    return asyncio.run(main())


@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_judge_writes_the_criteria_once_and_all_siblings_are_judged_by_them(one_by_one):
    server = Scripted(editor, delay=0.01)
    with serving(server):
        scores, _ = judged(server, PROMPT, wrote("a silver river", "a river", " "), one_by_one=one_by_one)
    assert [score.value for score in scores] == pytest.approx([8 / 9, 2 / 9, 0])
    assert len(server.bodies) == 3 and "secret" not in json.dumps(server.bodies)
    assert "5 criteria" in server.bodies[0]["messages"][1]["content"]
    assert scores[0].details == {f"criterion_{number}": 9.0 for number in (1, 2, 3)}
    assert scores[0].version == scores[1].version and scores[0].version.startswith("scripted-1/lwz-rubric-en-1@")
    assert scores[0].reasons == (("", "heard"), *(("9 of 10", f"{text} (0)") for text in LISTED))


def test_a_later_start_judges_by_the_same_criteria(tmp_path):
    server = Scripted(editor)
    with serving(server):
        (first,), _ = judged(server, PROMPT, wrote("a silver river"), cache=str(tmp_path / "cache.sqlite"))
        (second,), _ = judged(server, PROMPT, wrote("a river"), cache=str(tmp_path / "cache.sqlite"))
        (other,), _ = judged(
            server, Prompt("p2", "Write about a lake."), wrote("a lake"), cache=str(tmp_path / "cache.sqlite")
        )
    assert second.version == first.version != other.version and len(server.bodies) == 5
    assert [text for _, text in second.reasons[1:]] == [text for _, text in first.reasons[1:]]


def test_a_rows_criteria_are_taken_and_one_that_is_no_list_is_masked(caplog):
    server = Scripted(lambda *_: marks(10, 2))
    given = ["Funny.", {"name": "Sad", "criteria_description": "Sad in the end.", "1-2": "not"}]
    with serving(server):
        (score,), _ = judged(server, Prompt("p", "Write.", extra={"criteria": given}), wrote("text"))
        assert score.value == 1 and [text for _, text in score.reasons[1:]] == ["Funny.", "Sad in the end."]
        assert len(server.bodies) == 1
        (score,), _ = judged(server, Prompt("p7", "Write.", extra={"criteria": 5}), wrote("text"))
    assert not score.valid and "prompt p7" in caplog.text and len(server.bodies) == 1


def test_chinese_requests_get_chinese_criteria_and_a_list_that_is_none_masks_the_group():
    server = Scripted(lambda prompt, _: '{"criteria": ["只有一条"]}')
    with serving(server):
        scores, metrics = judged(server, Prompt("p", "写一条河"), wrote("河", "江"), number=4)
    assert "4 条标准" in server.bodies[0]["messages"][1]["content"] and not any(score.valid for score in scores)
    assert metrics["judge/total_masked_groups/criteria"] == 1 and metrics["judge/total_failed/malformed"] == 1


def test_pairs_can_be_compared_by_the_prompts_own_criteria():
    def compares(prompt: str, number: int) -> str:
        if '"winner"' not in prompt:
            return editor(prompt, number)
        first = prompt.partition("The second one wrote")[0].partition("The first one wrote")[2]
        return json.dumps({"reason": "heard", "winner": "first" if "silver" in first else "second"})

    server = Scripted(compares)
    with serving(server):
        scores, _ = judged(
            server, PROMPT, wrote("a silver river", "a river", "a lake"), kind="pairwise", own_criteria=True, number=3
        )
        asked = [body["messages"][1]["content"] for body in server.bodies]
        assert [score.value for score in scores] == [1, 0.25, 0.25] and len(asked) == 1 + 6
        assert all("\n1. The river is heard. (0)\n2. " in text for text in asked[1:])
        assert scores[0].version.startswith("scripted-1/lwz-pair-criteria-en-1@")
        row = Prompt("p", "写一条河", extra={"criteria": ["有水声"]})
        judged(server, row, wrote("河", "江"), kind="pairwise", own_criteria=True)
        assert "1. 有水声" in server.bodies[-1]["messages"][1]["content"] and len(server.bodies) == 7 + 2
        broken = Prompt("p", "Write.", extra={"criteria": {}})
        scores, _ = judged(server, broken, wrote("a", "b"), kind="pairwise", own_criteria=True)
    assert not any(score.valid for score in scores) and len(server.bodies) == 9


def group(number: int, *answers: str) -> list[Rollout]:
    return [replace(found, id=f"{number}-{found.index}") for found in wrote(*answers)]


class Growing:
    """A judge that gives 9 for a criterion whose last word the text has, else 4, and asks for one word more where all have it."""

    def __init__(self, *, harder: str | None = None) -> None:
        self.harder, self.asked = harder, []

    def __call__(self, prompt: str, _: int) -> str:
        listed = [line.partition(". ")[2] for line in prompt.splitlines() if line[:3] in ("1. ", "2. ")]
        if "tell nothing apart" in prompt:
            self.asked.append(prompt)
            met = prompt.partition("meet number ")[2].partition(",")[0]
            word = {"the bank": "bird", "the bird": "boat"}.get(listed[int(met.split()[0]) - 1], "sea")
            return self.harder or json.dumps({"criteria": [f"the {word}"]})
        if '"criteria"' in prompt:
            return json.dumps({"criteria": ["the bank", "the night"]})
        piece = prompt.partition("wrote this piece")[2].partition("Mark the piece")[0]
        return json.dumps({str(k): 9 if text.split()[-1] in piece else 4 for k, text in enumerate(listed, start=1)})


BOTH, MORE = ("a bank", "the bank"), ("a bank and a bird", "the bank, the bird")


def rounds_of(groups) -> list[tuple[float, list[str]]]:
    return [
        (scores[0].details["round"], [text for _, text in scores[0].reasons if text.startswith("the ")])
        for scores in groups
    ]


def test_criteria_that_all_siblings_meet_are_replaced_for_the_prompts_later_groups(tmp_path):
    judge = Growing()
    server = Scripted(judge)
    groups = [group(0, *BOTH), group(1, *BOTH), group(2, *MORE), group(3, *MORE), group(4, "a boat", "no")]
    with serving(server):
        found, metrics = judged(server, PROMPT, groups, cache=str(tmp_path / "c.sqlite"), rounds=2)
        assert rounds_of(found) == [
            (0, ["the bank", "the night"]), (1, ["the bird", "the night"]), (1, ["the bird", "the night"]),
            (2, ["the boat", "the night"]), (2, ["the boat", "the night"]),
        ]  # fmt: skip
        assert found[0][0].value == pytest.approx((6.5 - 1) / 9) and found[1][0].value == pytest.approx(3 / 9)
        assert len({scores[0].version for scores in found}) == 3, "each round is another version"
        assert len(judge.asked) == 2 and metrics["judge/total_replaced/criteria"] == 2
        assert metrics["judge/mean_round/criteria"] == 6 / 5
        before = len(server.bodies)
        again, _ = judged(server, PROMPT, groups[:3], cache=str(tmp_path / "c.sqlite"), rounds=2)
        assert again == found[:3] and len(server.bodies) == before, (
            "after a kill a group is judged as before, for nothing"
        )
        (later,), _ = judged(server, PROMPT, [group(9, "a bank", "a bird")], cache=str(tmp_path / "c.sqlite"), rounds=2)
        assert rounds_of([later]) == [(2, ["the boat", "the night"])], "and a new one by the newest criteria"
        (other,), _ = judged(server, Prompt("p2", "Write about a lake."), [group(10, "x", "y")], rounds=2)
        assert other[0].details["round"] == 0


@pytest.mark.parametrize("harder", ["none", '{"criteria": []}', '{"criteria": ["the night"]}'])
def test_a_judge_that_writes_no_harder_criteria_leaves_them_as_they_are(harder):
    server = Scripted(Growing(harder=harder))
    with serving(server):
        found, metrics = judged(server, PROMPT, [group(0, *BOTH), group(1, *BOTH)], rounds=2)
    assert rounds_of(found) == [(0, ["the bank", "the night"])] * 2 and metrics["judge/total_replaced/criteria"] == 0
    assert all(score.valid for scores in found for score in scores)


def test_what_one_sibling_misses_stays():
    judge = Growing()
    server = Scripted(judge)
    with serving(server):
        groups = [group(0, "a bank", "a hill"), group(1, "a bank", ""), group(2, "a bank")]
        found, _ = judged(server, PROMPT, groups, rounds=2)
        assert [scores[0].details["round"] for scores in found] == [0, 0, 0] and not judge.asked
        judged(server, PROMPT, [group(3, *BOTH), group(4, *BOTH)], rounds=2, met=9.5)
    assert not judge.asked


def test_evaluations_have_fixed_criteria():
    section = RewardSection(judges=[{"kind": "criteria", "rounds": 3}])
    judge = Judge.as_reward(JudgeSection(url="http://127.0.0.1:9", model="m"), KEY)
    (component,) = judge_components(section.judges, judge)
    assert isinstance(component, CurriculumComponent)
    (component,) = judge_components(with_fixed_criteria(section).judges, judge)
    assert isinstance(component, CriteriaComponent)
