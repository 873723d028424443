"""LongBench-Write: the length score S_l, the quality score S_q by a judge, and LongWrite-Ruler's longest lengths."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lwz.data.text.length import count_units
from megatron_lwz.evaluation.asking import Shown, ask_all
from megatron_lwz.evaluation.judge_prompts import QUALITY_DIMENSIONS, quality_question
from megatron_lwz.evaluation.measure import BUCKETS
from megatron_lwz.evaluation.responses import Response
from megatron_lwz.evaluation.statistics import Estimate, estimate
from megatron_lwz.evaluation.text_metrics import range_score
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_json import as_score, read_object

RATED = ("s_q", *QUALITY_DIMENSIONS)
"""The metrics that come from a judge's ratings."""
LABELS = {
    "s_mean": "mean of S_l and S_q",
    "s_l": "length score S_l",
    "s_q": "quality score S_q",
    **{name: name for name in QUALITY_DIMENSIONS},
}
"""Maps each metric to its name in tables. All are 0 to 100."""


@dataclass(frozen=True)
class LongBenchReport:
    """Estimates overall and by requested length, and a row per response. `unjudged` counts rows without a verdict."""

    metrics: Mapping[str, Estimate]
    by_length: Mapping[str, Mapping[str, Estimate]]
    rows: Sequence[Mapping[str, Any]]
    unjudged: int

    def as_json(self) -> dict[str, Any]:
        """Returns the content of longbench_write.json. Rows are stored in a separate file."""
        by_length = {name: _as_json(found) for name, found in self.by_length.items()}
        metrics = _as_json(self.metrics)
        return {"kind": "longbench_write", "metrics": metrics, "by_length": by_length, "unjudged": self.unjudged}


async def evaluate(
    responses: Sequence[Response], judge: Judge | None, *, public: str | None = None, shown: Shown = lambda *_: None
) -> LongBenchReport:
    """Scores responses that have prompt and length. Without a judge there is no S_q.

    `public` is the text of the benchmark's judge.txt. With it, scores can be compared with published ones. Raises
    EngineError.
    """
    rows: list[dict[str, Any]] = [_length_row(response) for response in responses]
    if judge is not None:
        asked = [quality_question(response.prompt or "", response.text, public) for response in responses]
        for row, verdict in zip(rows, await ask_all(judge, asked, read_quality, shown), strict=True):
            if verdict is not None:
                row |= {name: 25.0 * (score - 1) for name, score in verdict.value.items()}
                row["s_q"] = sum(row[name] for name in QUALITY_DIMENSIONS) / len(QUALITY_DIMENSIONS)
                row |= {"judge": verdict.judge, "reply": verdict.text}
                if "s_l" in row:
                    row["s_mean"] = (row["s_l"] + row["s_q"]) / 2
    unjudged = sum("s_q" not in row for row in rows) if judge is not None else 0
    return LongBenchReport(_estimates(rows), _by_length(rows), rows, unjudged)


def evaluate_now(responses: Sequence[Response]) -> LongBenchReport:
    """Runs `evaluate` without a judge."""
    return asyncio.run(evaluate(responses, None))


def read_quality(reply: str) -> dict[str, float] | None:
    """Returns the six scores of a reply, None when one is missing or is not a number from 1 to 5."""
    found = read_object(reply, QUALITY_DIMENSIONS)
    scores = {name: as_score(found[name], 1, 5) for name in QUALITY_DIMENSIONS} if found else {}
    given = {name: score for name, score in scores.items() if score is not None}
    return given if len(given) == len(QUALITY_DIMENSIONS) else None


@dataclass(frozen=True)
class RulerStep:
    """Response lengths to LongWrite-Ruler's prompts of one requested length, in words + CJK characters."""

    asked: int
    mean: float
    longest: int
    count: int


def ruler(responses: Sequence[Response]) -> list[RulerStep]:
    """Returns the responses' lengths by requested length. The length where they stop growing is the model's limit."""
    written: dict[int, list[int]] = {}
    for response in responses:
        if response.length is not None:
            written.setdefault(response.length.upper, []).append(count_units(response.text))
    return [RulerStep(asked, sum(w) / len(w), max(w), len(w)) for asked, w in sorted(written.items())]


def _length_row(response: Response) -> dict[str, Any]:
    length = count_units(response.text)
    row: dict[str, Any] = {"id": response.id, "sample": response.sample, "length": length}
    if response.length is not None:
        row |= {"asked": response.length.upper, "s_l": range_score(response.length, length)}
    return row


def _estimates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    found = {}
    for name in LABELS:
        kept = [row for row in rows if name in row]
        value = estimate([row[name] for row in kept], [row["id"] for row in kept])
        if value is not None:
            found[name] = value
    return found


def _by_length(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Estimate]]:
    ends: list[int | None] = [*BUCKETS[1:], None]
    found = {}
    for lower, upper in zip(BUCKETS, ends, strict=True):
        inside = [
            row for row in rows if "asked" in row and lower <= row["asked"] and (not upper or row["asked"] < upper)
        ]
        if inside:
            found[f"{lower} to {upper}" if upper else f"{lower} and more"] = _estimates(inside)
    return found


def _as_json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: value.as_json() for name, value in estimates.items()}
