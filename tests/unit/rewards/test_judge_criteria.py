"""Criteria that the judge writes for a prompt: once, for all siblings, kept for the next start."""

from __future__ import annotations

import asyncio
import json

import pytest

from megatron_lwz.config.sections import JudgeReward, JudgeSection
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_components import judge_components
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


def judged(server: Scripted, prompt: Prompt, rollouts: list[Rollout], *, cache=None, one_by_one=False, **section):
    """(scores, metrics) of a new component and judge, as a start of a run has them."""

    async def main():
        settings = JudgeSection(url=server.url, model="judge", backoff=0.01, malformed_retries=0, cache=cache)
        (component,) = judge_components([JudgeReward(kind="criteria", **section)], Judge.as_reward(settings, KEY))
        try:
            if one_by_one:
                found = await asyncio.gather(*(component.score_one(prompt, rollout) for rollout in rollouts))
                return component.settle(found), component.metrics()
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
