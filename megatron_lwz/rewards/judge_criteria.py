"""Reward components that judge every prompt by criteria of its own, which the judge writes for it; fixed, or ever harder."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace

from megatron_lwz.config.sections import JudgeReward
from megatron_lwz.rewards import judge_prompts as ask
from megatron_lwz.rewards.judge_base import EachJudged, JudgedComponent, Task
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_criteria_prompts import (
    LONGEST_CRITERION,
    criteria_question,
    harder_question,
    read_criteria,
)
from megatron_lwz.types import ComponentScore

CRITERIA = "criteria"
"""Key of a prompt row: a list of short texts, or WritingBench's objects."""
_FEWEST = 2

Criteria = tuple[str, ...]

log = logging.getLogger(__name__)


def criteria_component(section: JudgeReward, judge: Judge) -> JudgedComponent:
    """Returns the component of kind `criteria`, with a curriculum if `rounds` is above 0."""
    return CurriculumComponent(section, judge) if section.rounds else CriteriaComponent(section, judge)


class OwnCriteria(JudgedComponent):
    """Finds the criteria of a prompt: those of its row, or those that the judge writes.

    The judge is asked once; its cache keeps the reply, so all rollouts of a prompt have one list, after a resume too.
    """

    async def _criteria(self, task: Task) -> Criteria | None:
        if CRITERIA in task.prompt.extra:
            given = ask.as_checklist(task.prompt.extra[CRITERIA], items=1000, longest=LONGEST_CRITERION)
            if given is None:
                log.warning(
                    "prompt %s: its `%s` is not a list of short texts, %s is masked",
                    task.prompt.id,
                    CRITERIA,
                    self.name,
                )
            return given
        number = self._section.number
        question = criteria_question(task.request, task.language, number)
        verdict = await self.judge.ask(question, read_criteria(_FEWEST, number))
        return verdict.value if verdict is not None else None


class CriteriaComponent(OwnCriteria, EachJudged):
    """The mean mark of the prompt's own criteria, 1 to 10 scaled to [0, 1].

    The version of a score holds a digest of the list. Details: `criterion_1` … are the marks.
    """

    async def _judge_group(self, task: Task, answers: Sequence[str]) -> list[ComponentScore | None]:
        criteria = await self._criteria(task)
        if criteria is None:
            return [None] * len(answers)
        return await self._each(answers, lambda answer: self._marked(task, answer, criteria, named=True))


class CurriculumComponent(OwnCriteria):
    """A CriteriaComponent whose criteria grow harder, and which therefore needs the whole group.

    When all rollouts of a group meet a criterion (mark `met` or more), it no longer tells them apart: the judge writes a
    harder one in its place, for the later groups of this prompt, at most `rounds` times. Each round is a note beside the
    judge's replies, and so is the round by which a group is judged: a group that is scored again, after a kill, is
    judged by the same criteria. Details: also `round`, from 0.
    """

    async def _judge_group(self, task: Task, answers: Sequence[str]) -> list[ComponentScore | None]:
        first = await self._criteria(task)
        if first is None:
            return [None] * len(answers)
        place = (self.name, self._section.met, task.request, first)
        newest = self._newest(place)
        number = int(self.judge.note(str(newest), "group", *place, task.ids))
        criteria = self._of_round(place, number) if number else first
        self._counters["groups"] += 1
        self._counters["rounds"] += number
        scores = await self._each(answers, lambda answer: self._marked(task, answer, criteria, named=True))
        if number == newest < self._section.rounds:
            await self._advance(task, place, number, criteria, scores)
        return [score and replace(score, details={**score.details, "round": float(number)}) for score in scores]

    def metrics(self) -> dict[str, float]:
        """Returns the counts of every judged component, how many criteria were replaced, and the groups' mean round."""
        found = super().metrics() | {f"judge/total_replaced/{self.name}": float(self._counters["replaced"])}
        if self._counters["groups"]:
            found[f"judge/mean_round/{self.name}"] = self._counters["rounds"] / self._counters["groups"]
        return found

    def _newest(self, place: tuple[object, ...]) -> int:
        """Returns the number of the last round of a prompt that has begun."""
        number = 0
        while self.judge.noted("round", *place, number + 1) is not None:
            number += 1
        return number

    def _of_round(self, place: tuple[object, ...], number: int) -> Criteria:
        found = self.judge.noted("round", *place, number)
        assert found is not None  # a round is noted before any group that is judged by it
        return tuple(json.loads(found))

    async def _advance(
        self,
        task: Task,
        place: tuple[object, ...],
        number: int,
        criteria: Criteria,
        scores: Sequence[ComponentScore | None],
    ) -> None:
        """Begins the next round if all answers meet a criterion and the judge writes harder ones. Else all stays."""
        marks = [score.details for score in scores if score is not None]
        if len(scores) < 2 or len(marks) < len(scores):
            return
        bar = self._section.met
        met = [k for k in range(len(criteria)) if all(found.get(f"criterion_{k + 1}", 0.0) >= bar for found in marks)]
        if not met:
            return
        question = harder_question(task.request, task.language, criteria, met)
        verdict = await self.judge.ask(question, read_criteria(len(met), len(met)))
        if verdict is None or set(verdict.value) & set(criteria):
            return
        harder = list(criteria)
        for k, text in zip(met, verdict.value, strict=True):
            harder[k] = text
        self.judge.note(json.dumps(harder, ensure_ascii=False), "round", *place, number + 1)
        self._counters["replaced"] += len(met)
