"""HelloBench (2409.16191): scores of checklists by a judge, weighted as the benchmark weights them, and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron_lwz.config.sections import FormatReward
from megatron_lwz.evaluation.asking import Shown, ask_each
from megatron_lwz.evaluation.hello_bench_files import TASKS, Item
from megatron_lwz.evaluation.judge_prompts import checklist_question, read_checklist_scores
from megatron_lwz.evaluation.measure import measure_one
from megatron_lwz.evaluation.responses import Response
from megatron_lwz.evaluation.statistics import Estimate, estimate, mean_of_groups
from megatron_lwz.rewards.judge_client import Judge, Verdict

MEASURED = {
    "length": "length, words + CJK characters",
    "long_enough": "as long as asked",
    "near_duplicates": "near-duplicate paragraphs",
}
"""Metrics without a judge, by their names in tables."""
ZERO, SCALE = 75.0, 4.0
"""The benchmark shows (score − 75) · 4, so that 75 of 100 is 0 and 100 stays 100; bad texts are below 0."""


@dataclass(frozen=True)
class HelloReport:
    """Estimates by metric, and a row per response. `unjudged` counts responses without a verdict."""

    metrics: Mapping[str, Estimate]
    rows: Sequence[Mapping[str, Any]]
    unjudged: int

    def as_json(self) -> dict[str, Any]:
        """Returns the content of hello_bench.json. Rows are stored in a separate file."""
        metrics = {name: value.as_json() for name, value in self.metrics.items()}
        return {"kind": "hello_bench", "metrics": metrics, "unjudged": self.unjudged}


async def judge_responses(
    items: Mapping[str, Item],
    responses: Sequence[Response],
    judge: Judge,
    *,
    public: tuple[str, str] | None = None,
    shown: Shown = lambda *_: None,
) -> list[Verdict[list[float]] | None]:
    """Asks one question per response, about its whole checklist. `public` is the benchmark's own (system, template).

    Raises EngineError for a judge that answers nothing.
    """
    asked = [items[response.id] for response in responses]
    questions = [
        checklist_question(item.instruction, response.text, item.checklist, public)
        for item, response in zip(asked, responses, strict=True)
    ]
    reads = [partial(read_checklist_scores, items=len(item.checklist), public=public is not None) for item in asked]
    return await ask_each(judge, questions, reads, shown)


def summarise(
    items: Mapping[str, Item],
    responses: Sequence[Response],
    scores: Mapping[str, Sequence[float]] | None,
    weights: Mapping[str, Sequence[float]] | None,
) -> HelloReport:
    """Returns the figures. `scores` holds id → scores of the checklist of responses, None without a judge.

    A response's score is the weighted mean of its checklist, times 100, on the benchmark's scale. A task is the mean of its
    responses, Overall the mean of the tasks. Without `weights` every item counts alike.
    """
    rows = [_measure(items[response.id], response) for response in responses]
    named = {str(row["id"]): row for row in rows}
    for identity, given in (scores or {}).items():
        named[identity]["score"] = score(items[identity], given, weights)
    metrics: dict[str, Estimate | None] = {}
    tasks = list(dict.fromkeys((*TASKS, *(row["task"] for row in rows))))
    by_task = {task: [row for row in rows if row["task"] == task and "score" in row] for task in tasks}
    if len([task for task in tasks if by_task[task]]) > 1:
        metrics["Overall"] = mean_of_groups([[row["score"] for row in found] for found in by_task.values()])
    for task, found in by_task.items():
        metrics[task] = _mean(found, "score")
        for row in found:
            row[task] = row["score"]
    for name in MEASURED:
        metrics[name] = _mean([row for row in rows if name in row], name)
    for category in sorted({item.category for item in items.values()}):
        inside = [row for row in rows if "score" in row and items[row["id"]].category == category]
        metrics[f"Category_{category}"] = _mean(inside, "score")
    kept = {name: value for name, value in metrics.items() if value is not None}
    return HelloReport(kept, rows, sum("score" not in row for row in rows) if scores is not None else 0)


def score(item: Item, scores: Sequence[float], weights: Mapping[str, Sequence[float]] | None) -> float:
    """Returns a response's score on the benchmark's scale: 100 is perfect, 0 is 75 % of the checklist."""
    shares = weights[item.category] if weights is not None else [1 / len(scores)] * len(scores)
    return (100 * sum(share * value for share, value in zip(shares, scores, strict=True)) - ZERO) * SCALE


def _measure(item: Item, response: Response) -> dict[str, Any]:
    found = measure_one(response, FormatReward())
    row = {"id": item.id, "task": item.task, "length": found["length"]}
    if item.least is not None:
        row["long_enough"] = float(found["length"] >= item.least)
    return row | {name: found[name] for name in ("near_duplicates",) if name in found}


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> Estimate | None:
    return estimate([row[name] for row in rows], [row["id"] for row in rows])
