"""Reward components from a language model's verdicts: rubric, checklist, pairwise in the group or against a reference."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from itertools import combinations

from megatron_lwz.config.sections import JudgeReward
from megatron_lwz.rewards import judge_prompts as ask
from megatron_lwz.rewards.judge_base import EachJudged, JudgedComponent, Pair, Task
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_criteria import OwnCriteria, criteria_component
from megatron_lwz.rewards.judge_reasons import reason_in
from megatron_lwz.types import ComponentScore, RewardFn

CHECKLIST, REFERENCE = "checklist", "reference"
"""Keys of a prompt row that these components read."""

log = logging.getLogger(__name__)


def judge_components(sections: Sequence[JudgeReward], judge: Judge) -> list[RewardFn]:
    """Returns one component for each section. They share the judge, its cache and its budget."""
    return [_KINDS[section.kind](section, judge) for section in sections]


class RubricComponent(EachJudged):
    """The mean mark of a rubric, 1 to 10 scaled to [0, 1]. Details: `criterion_1` … are the marks."""

    async def _judge_group(self, task: Task, answers: Sequence[str]) -> list[ComponentScore | None]:
        return await self._each(answers, lambda answer: self._marked(task, answer, self._section.criteria))


class ChecklistComponent(EachJudged):
    """The share of a checklist's requirements that are met; partly met counts half (ACE-RL, 2509.04903).

    The checklist is the row's `checklist`, or the requirements that the judge finds in the request. The whole group has
    one checklist. Details: `requirements`, their number, and `met`, the number of wholly met ones.
    """

    async def _judge_group(self, task: Task, answers: Sequence[str]) -> list[ComponentScore | None]:
        checklist = await self._checklist(task)
        if checklist is None:
            return [None] * len(answers)

        async def score(answer: str) -> ComponentScore | None:
            question = ask.check_question(task.request, answer, task.language, checklist)
            verdict = await self.judge.ask(question, ask.read_degrees(len(checklist)))
            if verdict is None:
                return None
            details = {"requirements": float(len(checklist)), "met": float(verdict.value.count(1.0))}
            said = [("", reason_in(verdict.text, ask.numbers(len(checklist))))]
            said += [(_MET[degree], item) for degree, item in zip(verdict.value, checklist, strict=True)]
            value = sum(verdict.value) / len(checklist)
            return ComponentScore(value, True, details, verdict.judge, self._kept(said))

        return await self._each(answers, score)

    async def _checklist(self, task: Task) -> tuple[str, ...] | None:
        items = self._section.items
        if CHECKLIST in task.prompt.extra:
            given = ask.as_checklist(task.prompt.extra[CHECKLIST], items=1000)
            if given is None:
                log.warning(
                    "prompt %s: its `%s` is not a list of short texts, %s is masked",
                    task.prompt.id,
                    CHECKLIST,
                    self.name,
                )
            return given
        verdict = await self.judge.ask(
            ask.requirements_question(task.request, task.language, items), ask.read_requirements(items)
        )
        return verdict.value if verdict is not None else None


class PairwiseComponent(OwnCriteria):
    """The share of verdicts won against other answers of the group.

    A tie counts half. Each pair is judged in both orders. Each answer meets `opponents` others (an odd number is
    rounded up), so a group costs G · opponents questions. The pairs depend on the texts alone, so a repeated run asks
    the same questions. With `own_criteria` the judge compares by the prompt's criteria. Details: `pairs`, and `agreed`,
    the pairs whose two orders agree.
    """

    async def _judge_group(self, task: Task, answers: Sequence[str]) -> list[ComponentScore | None]:
        pairs = choose_pairs(answers, self._section.opponents)
        criteria = await self._criteria(task) if self._section.own_criteria else ()
        if criteria is None:
            return [None] * len(answers)

        async def play(place: int) -> Pair | None:
            a, b = pairs[place]
            return await self._compare(task, answers[a], answers[b], criteria)

        games: list[list[tuple[str, Pair]]] = [[] for _ in answers]
        names = [f"rollout {index}" for index in task.indices]
        for (a, b), pair in zip(pairs, await self._in_parallel(len(pairs), play), strict=True):
            if pair is not None:
                games[a].append((names[b], pair))
                games[b].append((names[a], pair.turned()))
        return [self._total(played) for played in games]


class ReferenceComponent(EachJudged):
    """The share of two verdicts won against the row's `reference` text, in both orders.

    Details as in PairwiseComponent. A row without a reference is masked and costs no question.
    """

    async def _judge_group(self, task: Task, answers: Sequence[str]) -> list[ComponentScore | None]:
        reference = task.prompt.extra.get(REFERENCE)
        if not isinstance(reference, str) or not reference.strip():
            return [ComponentScore(0.0, valid=False, version="no-reference") for _ in answers]

        async def score(answer: str) -> ComponentScore | None:
            pair = await self._compare(task, answer, reference.strip())
            return self._total([("the reference", pair)] if pair is not None else [])

        return await self._each(answers, score)


def choose_pairs(texts: Sequence[str], opponents: int) -> list[tuple[int, int]]:
    """Returns index pairs in which each text meets `opponents` others (one more if odd), or all if there are no more.

    The texts form a ring in the order of their digests, and each text meets its nearest neighbours.
    """
    count, reach = len(texts), (opponents + 1) // 2
    if 2 * reach >= count - 1:
        return list(combinations(range(count), 2))
    ring = sorted(
        range(count), key=lambda place: (hashlib.sha256(texts[place].encode("utf-8", "surrogatepass")).digest(), place)
    )
    return [(ring[k], ring[(k + step) % count]) for step in range(1, reach + 1) for k in range(count)]


_MET = {1.0: "met", 0.5: "partly met", 0.0: "not met"}
"""How far a requirement is met, in words."""
_KINDS: dict[str, Callable[[JudgeReward, Judge], JudgedComponent]] = {
    "rubric": RubricComponent,
    "checklist": ChecklistComponent,
    "pairwise": PairwiseComponent,
    "reference": ReferenceComponent,
    "criteria": criteria_component,
}
