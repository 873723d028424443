"""Reward components from a language model's verdicts: rubric, checklist, pairwise in the group or against a reference.

The judge sees the request and the answer, never the thinking. A rollout without an answer gets 0 and costs no question.
A question without a verdict masks the component for the whole group, unless the config says otherwise. If only that
rollout were masked, a text that makes the judge fail would escape its verdict.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

from megatron_lwz.config.sections import JudgeReward
from megatron_lwz.data.preparation.language import Language
from megatron_lwz.data.templates import detect_language
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.http.retry import Failure
from megatron_lwz.http.session import Closing
from megatron_lwz.rewards import judge_prompts as ask
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_reasons import bound, reason_in
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.types import ComponentScore, Prompt, Reason, RewardFn, Rollout

T = TypeVar("T")

CHECKLIST, REFERENCE = "checklist", "reference"
"""Keys of a prompt row that these components read."""
_COUNTED = (
    *("asked", "answered", "cached", "requests", "retried", "malformed", "prompt_tokens", "completion_tokens"),
    "reasons_cut",
    *(f"failed/{kind}" for kind in (*(failure.value for failure in Failure), "malformed", "budget", "resting")),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """The writing task of a group."""

    prompt: Prompt
    language: Language
    indices: tuple[int, ...]
    """Index of each answer's rollout in its group."""

    @property
    def request(self) -> str:
        """Text of the user's request."""
        return self.prompt.text


def judge_components(sections: Sequence[JudgeReward], judge: Judge) -> list[RewardFn]:
    """Returns one component for each section. They share the judge, its cache and its budget."""
    return [_KINDS[section.kind](section, judge) for section in sections]


class JudgedComponent(Closing):
    """Common part of the four kinds: extraction of answers, masks, counts."""

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
        task = Task(prompt, _language(prompt), tuple(rollout.index for rollout in rollouts))
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

    def _kept(self, reasons: Sequence[Reason]) -> tuple[Reason, ...]:
        """Returns the reasons within their bounds. What is cut is counted."""
        kept, cut = bound(reasons)
        self.judge.counters["reasons_cut"] += cut
        return kept

    async def _compare(self, task: Task, first: str, second: str) -> Pair | None:
        """Compares a pair in both orders. Returns None unless both got a verdict.

        One verdict alone would contain the judge's position bias.
        """
        if not first or not second or first == second:
            return Pair((bool(first) - bool(second) + 1) / 2, agreed=True, judge="rule-1")
        orders = [(first, second), (second, first)]
        ahead, behind = await asyncio.gather(
            *(
                self.judge.ask(ask.pair_question(task.request, *order, task.language), ask.read_winner)
                for order in orders
            )
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

    async def _each(self, answers: Sequence[str], score: Callable[[str], Awaitable[T]]) -> list[T | ComponentScore]:
        """Returns `score` of every answer that is not blank, and 0 for the others."""

        async def one(place: int) -> T | ComponentScore:
            return await score(answers[place]) if answers[place] else ComponentScore(0.0, version="no-answer")

        return await self._in_parallel(len(answers), one)


class RubricComponent(EachJudged):
    """The mean mark of a rubric, 1 to 10 scaled to [0, 1]. Details: `criterion_1` … are the marks."""

    async def _judge_group(self, task: Task, answers: Sequence[str]) -> list[ComponentScore | None]:
        criteria = self._section.criteria
        count = len(criteria or ask.CRITERIA[task.language])
        read = ask.read_marks(count)

        async def score(answer: str) -> ComponentScore | None:
            verdict = await self.judge.ask(ask.rubric_question(task.request, answer, task.language, criteria), read)
            if verdict is None:
                return None
            marks = verdict.value
            details = {f"criterion_{number}": float(value) for number, value in enumerate(marks, start=1)}
            value = (sum(marks) / len(marks) - 1) / (ask.BEST_MARK - 1)
            reasons = self._kept([("", reason_in(verdict.text, ask.numbers(count)))])
            return ComponentScore(value, True, details, verdict.judge, reasons)

        return await self._each(answers, score)


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


class PairwiseComponent(JudgedComponent):
    """The share of verdicts won against other answers of the group.

    A tie counts half. Each pair is judged in both orders. Each answer meets `opponents` others (an odd number is
    rounded up), so a group costs G · opponents questions. The pairs depend on the texts alone, so a repeated run asks
    the same questions. Details: `pairs`, and `agreed`, the pairs whose two orders agree.
    """

    async def _judge_group(self, task: Task, answers: Sequence[str]) -> list[ComponentScore | None]:
        pairs = choose_pairs(answers, self._section.opponents)

        async def play(place: int) -> Pair | None:
            a, b = pairs[place]
            return await self._compare(task, answers[a], answers[b])

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


def _language(prompt: Prompt) -> Language:
    """Returns the row's language if our questions exist in it, else that of the request's characters."""
    known: dict[str, Language] = {"en": "en", "zh": "zh", "english": "en", "chinese": "zh"}
    return known.get(prompt.language or "") or known[detect_language(prompt.text)]


_MET = {1.0: "met", 0.5: "partly met", 0.0: "not met"}
"""How far a requirement is met, in words."""
_KINDS: dict[str, type[JudgedComponent]] = {
    "rubric": RubricComponent,
    "checklist": ChecklistComponent,
    "pairwise": PairwiseComponent,
    "reference": ReferenceComponent,
}
