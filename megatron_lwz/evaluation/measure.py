"""Measurements without a judge: length following, repetition, truncation, format, language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lwz.config.sections import FormatReward
from megatron_lwz.data.text.length import count_units
from megatron_lwz.evaluation import text_metrics
from megatron_lwz.evaluation.responses import Response
from megatron_lwz.evaluation.statistics import Estimate, estimate
from megatron_lwz.rewards.format import count_duplicates

LABELS = {
    "length": "length, words + CJK characters",
    "s_l": "length score S_l, 0 to 100",
    "in_range": "length in the asked range",
    "empty": "empty answers",
    "truncated": "cut off at the token limit",
    "format_valid": "valid format",
    "distinct_1": "distinct words",
    "distinct_2": "distinct 2-grams",
    "distinct_4": "distinct 4-grams",
    "near_duplicates": "near-duplicate paragraphs",
    "language_consistent": "in the prompt's language",
}
"""Maps each metric to its name in tables. All but the length are shares of 1 unless the name says otherwise."""

BUCKETS = (0, 500, 2000, 4000, 20000)
"""Lower bounds of the curve's groups of requested lengths, as in LongBench-Write. The last group has no upper bound."""


@dataclass(frozen=True)
class Bucket:
    """The responses to prompts whose requested length (middle of the range) lies in [lower, upper)."""

    lower: int
    upper: int | None
    asked: Estimate
    written: Estimate
    score: Estimate


@dataclass(frozen=True)
class TextReport:
    """Estimates by metric, the length-following curve, counts of format faults, and the metrics of every response."""

    metrics: Mapping[str, Estimate]
    curve: Sequence[Bucket]
    faults: Mapping[str, int]
    rows: Sequence[Mapping[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Returns the content of text.json. Rows are stored in a separate file."""
        curve = [
            {"lower": b.lower, "upper": b.upper}
            | {name: getattr(b, name).as_json() for name in ("asked", "written", "score")}
            for b in self.curve
        ]
        metrics = {name: value.as_json() for name, value in self.metrics.items()}
        return {"kind": "text", "metrics": metrics, "curve": curve, "faults": dict(self.faults)}


def measure(responses: Sequence[Response], section: FormatReward | None = None) -> TextReport:
    """Measures every response. A metric is the mean over the responses it applies to. `section` defines duplicates."""
    rows = [measure_one(response, section or FormatReward()) for response in responses]
    metrics = {name: found for name in LABELS if (found := _mean(rows, name)) is not None}
    faults = Counter(response.fault for response in responses if response.fault)
    return TextReport(metrics, _curve(rows), dict(faults.most_common()), rows)


def measure_one(response: Response, section: FormatReward) -> dict[str, Any]:
    """Measures one response. Metrics that do not apply are left out."""
    text, asked = response.text, response.length
    length = count_units(text)
    row: dict[str, Any] = {"id": response.id, "sample": response.sample, "length": length, "empty": float(not text)}
    if asked is not None:
        row |= {"asked_lower": asked.lower, "asked_upper": asked.upper}
        row |= {"s_l": text_metrics.range_score(asked, length), "in_range": float(asked.lower <= length <= asked.upper)}
    if response.finish_reason is not None:
        row["truncated"] = float(response.finish_reason == "length")
    if response.template is not None:
        row["format_valid"] = float(response.fault is None)
    for size in (1, 2, 4):
        if (share := text_metrics.distinct(text, size)) is not None:
            row[f"distinct_{size}"] = share
    duplicates = count_duplicates(text, section)
    if duplicates.compared:
        row["near_duplicates"] = duplicates.share
    if response.prompt is not None:
        language = text_metrics.expected_language(response.prompt, response.language)
        share = text_metrics.language_share(text, language) if language else None
        if share is not None:
            row |= {"language_share": share, "language_consistent": float(share >= 0.5)}
    return row


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> Estimate | None:
    kept = [row for row in rows if name in row]
    return estimate([row[name] for row in kept], [row["id"] for row in kept])


def _curve(rows: Sequence[Mapping[str, Any]]) -> list[Bucket]:
    asked = [{**row, "asked": (row["asked_lower"] + row["asked_upper"]) / 2} for row in rows if "s_l" in row]
    ends: list[int | None] = [*BUCKETS[1:], None]
    curve = []
    for lower, upper in zip(BUCKETS, ends, strict=True):
        inside = [row for row in asked if lower <= row["asked"] and (upper is None or row["asked"] < upper)]
        found = [_mean(inside, name) for name in ("asked", "length", "s_l")]
        if found[0] and found[1] and found[2]:
            curve.append(Bucket(lower, upper, found[0], found[1], found[2]))
    return curve
