"""Common part of the components that a language model's verdicts score: answers, masks, counts, comparisons of two texts.

The judge sees the request and the answer, never the thinking. A rollout without an answer gets 0 and costs no question.
A question without a verdict masks the component for the whole group, unless the config says otherwise. If only that
rollout were masked, a text that makes the judge fail would escape its verdict.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from megatron_lwz.config.sections import JudgeReward
from megatron_lwz.data.preparation.language import Language
from megatron_lwz.data.templates import detect_language
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.http.retry import Failure
from megatron_lwz.http.session import Closing
from megatron_lwz.rewards import judge_prompts as ask
from megatron_lwz.rewards.judge_client import Judge, Question
from megatron_lwz.rewards.judge_criteria_prompts import pair_by_criteria_question
from megatron_lwz.rewards.judge_reasons import bound, reason_in
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.types import ComponentScore, Prompt, Reason, Rollout

T = TypeVar("T")

_COUNTED = (
    *("asked", "answered", "cached", "requests", "retried", "malformed", "prompt_tokens", "completion_tokens"),
    "reasons_cut",
    *(f"failed/{kind}" for kind in (*(failure.value for failure in Failure), "malformed", "budget", "resting")),
)


@dataclass(frozen=True)
class Task:
    """The writing task of a group."""

    prompt: Prompt
    language: Language
    indices: tuple[int, ...]
    """Index of each answer's rollout in its group."""
    ids: tuple[str, ...] = ()
    """Identifier of each answer's rollout, unique in the run."""

    @property
    def request(self) -> str:
        """Text of the user's request."""
        return self.prompt.text


class JudgedComponent(Closing):
    """Common part of all kinds: extraction of answers, masks, counts."""

    def __init__(self, section: JudgeReward, judge: Judge) -> None:
        self.name = section.title
        self._section = section
        self.judge = judge
        """The judge, which all components share."""
        self._counters: Counter[str] = Counter()

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score in [0, 1] per rollout.

        Details depend on the kind. `version` is the judge's model and the prompt's version.
        """
        return self.settle(await self._score(prompt, rollouts))

    def settle(self, scores: Sequence[ComponentScore]) -> list[ComponentScore]:
        """Masks the whole group if one verdict is missing, unless the config says otherwise."""
        if self._section.failed == "group" and not all(score.valid for score in scores):
            scores = [replace(score, valid=False) for score in scores]
        self._counters["masked groups"] += not any(score.valid for score in scores)
        return list(scores)

    def metrics(self) -> dict[str, float]:
        """Returns counts since the start of the process: the judge's (of all components together) and masked groups."""
        counted = {f"judge/total_{name}": float(self.judge.counters[name]) for name in _COUNTED}
        counted[f"judge/total_masked_groups/{self.name}"] = float(self._counters["masked groups"])
        if self._counters["pairs"]:
            counted[f"judge/order_agreement/{self.name}"] = self._counters["agreed"] / self._counters["pairs"]
        return counted

    async def close(self) -> None:
        """Closes the connections of the judge, which all components share. It may go on in another event loop."""
        await self.judge.disconnect()

    async def _score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        answers = [(parse_rollout(prompt, rollout).answer or "").strip() for rollout in rollouts]
        missing = ComponentScore(0.0, valid=False, version="no-verdict")
        indices, ids = tuple(rollout.index for rollout in rollouts), tuple(rollout.id for rollout in rollouts)
        task = Task(prompt, _language(prompt), indices, ids)
        return [score or missing for score in await self._judge_group(task, answers)]

    @abstractmethod
    async def _judge_group(self, task: Task, answers: Sequence[str]) -> list[ComponentScore | None]:
        """Returns a score for each answer, None without a verdict."""

    async def _in_parallel(self, count: int, work: Callable[[int], Awaitable[T]]) -> list[T]:
        """Returns the results of `work(0 … count − 1)`.

        Each question is built only when its turn comes, because texts are long.
        """

        async def one(place: int) -> T:
            async with self.judge.turns:
                return await work(place)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(place)) for place in range(count)]
        return [task.result() for task in tasks]

    async def _marked(
        self, task: Task, answer: str, criteria: Sequence[str], *, named: bool = False
    ) -> ComponentScore | None:
        """Returns the mean mark of an answer, scaled to [0, 1]; None without a verdict. Details: `criterion_1` … are the marks.

        Without `criteria` the marks are on our own ones. `named`: the criteria are kept with the score, as reasons.
        """
        count = len(criteria or ask.CRITERIA[task.language])
        question = ask.rubric_question(task.request, answer, task.language, criteria)
        verdict = await self.judge.ask(question, ask.read_marks(count))
        if verdict is None:
            return None
        marks = verdict.value
        details = {f"criterion_{number}": float(value) for number, value in enumerate(marks, start=1)}
        said = [("", reason_in(verdict.text, ask.numbers(count)))]
        if named:
            said += [(f"{value:g} of {ask.BEST_MARK}", text) for value, text in zip(marks, criteria, strict=True)]
        value = (sum(marks) / len(marks) - 1) / (ask.BEST_MARK - 1)
        return ComponentScore(value, True, details, verdict.judge, self._kept(said))

    def _kept(self, reasons: Sequence[Reason]) -> tuple[Reason, ...]:
        """Returns the reasons within their bounds. What is cut is counted."""
        kept, cut = bound(reasons)
        self.judge.counters["reasons_cut"] += cut
        return kept

    async def _each(self, answers: Sequence[str], score: Callable[[str], Awaitable[T]]) -> list[T | ComponentScore]:
        """Returns `score` of every answer that is not blank, and 0 for the others."""

        async def one(place: int) -> T | ComponentScore:
            return await score(answers[place]) if answers[place] else ComponentScore(0.0, version="no-answer")

        return await self._in_parallel(len(answers), one)

    async def _compare(self, task: Task, first: str, second: str, criteria: Sequence[str] = ()) -> Pair | None:
        """Compares a pair in both orders, by the `criteria` if there are any. Returns None unless both got a verdict.

        One verdict alone would contain the judge's position bias.
        """
        if not first or not second or first == second:
            return Pair((bool(first) - bool(second) + 1) / 2, agreed=True, judge="rule-1")

        def question(one: str, other: str) -> Question:
            if criteria:
                return pair_by_criteria_question(task.request, one, other, task.language, criteria)
            return ask.pair_question(task.request, one, other, task.language)

        ahead, behind = await asyncio.gather(
            *(self.judge.ask(question(*order), ask.read_winner) for order in ((first, second), (second, first)))
        )
        if ahead is None or behind is None:
            return None
        agreed = ahead.value == 1 - behind.value
        self._counters["pairs"] += 1
        self._counters["agreed"] += agreed
        said = (reason_in(ahead.text, ("winner",)), reason_in(behind.text, ("winner",)))
        return Pair((ahead.value + 1 - behind.value) / 2, agreed, ahead.judge, said)

    def _total(self, played: Sequence[tuple[str, Pair]]) -> ComponentScore | None:
        """Returns the score of a text from its pairs, each with the name of the other text; None without a pair."""
        if not played:
            return None
        pairs = [pair for _, pair in played]
        judges = sorted({pair.judge for pair in pairs if pair.judge != "rule-1"})
        details = {"pairs": float(len(pairs)), "agreed": float(sum(pair.agreed for pair in pairs))}
        value = sum(pair.score for pair in pairs) / len(pairs)
        said = [
            (f"beside {other}, this text {place}", words)
            for other, pair in played
            for place, words in zip(("first", "second"), pair.said, strict=True)
        ]
        return ComponentScore(value, True, details, ",".join(judges) or "rule-1", self._kept(said))


@dataclass(frozen=True)
class Pair:
    """Result of a pair: the first text's share of the two verdicts, whether the two orders agree, and the judge.

    `score` is 0, ¼, ½, ¾ or 1. `said`: the judge's reasons where the first text stood first, and where it stood second.
    """

    score: float
    agreed: bool
    judge: str
    said: tuple[str, str] = ("", "")

    def turned(self) -> Pair:
        """Returns the result as the second text sees it."""
        return replace(self, score=1 - self.score, said=self.said[::-1])


class EachJudged(JudgedComponent, PerRollout):
    """A component that judges one answer at a time, and so can begin as soon as a rollout is finished."""

    async def score_one(self, prompt: Prompt, rollout: Rollout) -> ComponentScore:
        """Returns the rollout's score, invalid without a verdict. `settle` masks the group."""
        (score,) = await self._score(prompt, [rollout])
        return score


def _language(prompt: Prompt) -> Language:
    """Returns the row's language if our questions exist in it, else that of the request's characters."""
    known: dict[str, Language] = {"en": "en", "zh": "zh", "english": "en", "chinese": "zh"}
    return known.get(prompt.language or "") or known[detect_language(prompt.text)]
