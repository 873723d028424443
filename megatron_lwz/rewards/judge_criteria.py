"""A reward component that judges every prompt by criteria of its own, which the judge writes for the prompt once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from megatron_lwz.rewards import judge_prompts as ask
from megatron_lwz.rewards.judge_base import EachJudged, Task
from megatron_lwz.rewards.judge_criteria_prompts import LONGEST_CRITERION, criteria_question, read_criteria
from megatron_lwz.types import ComponentScore

CRITERIA = "criteria"
"""Key of a prompt row: a list of short texts, or WritingBench's objects."""
_FEWEST = 2

log = logging.getLogger(__name__)


class CriteriaComponent(EachJudged):
    """The mean mark of the prompt's own criteria, 1 to 10 scaled to [0, 1].

    The criteria are the row's `criteria`, or those that the judge writes for the request. The judge is asked for them
    once; its cache keeps the reply, so all rollouts of a prompt are judged by one list, after a resume too. The
    version of a score holds a digest of the list. Details: `criterion_1` … are the marks.
    """

    async def _judge_group(self, task: Task, answers: Sequence[str]) -> list[ComponentScore | None]:
        criteria = await self._criteria(task)
        if criteria is None:
            return [None] * len(answers)
        return await self._each(answers, lambda answer: self._marked(task, answer, criteria, named=True))

    async def _criteria(self, task: Task) -> tuple[str, ...] | None:
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
