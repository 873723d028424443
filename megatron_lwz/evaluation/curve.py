"""The curve of quality, slop and repetition over the position in a text, and the part from which it decays.

After the chapter curve of EQ-Bench's long-form writing benchmark (Paech 2025), for any text: it is cut into parts of equal
length. Intervals and claims are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lwz.config.sections import FormatReward
from megatron_lwz.evaluation.asking import Shown, ask_all
from megatron_lwz.evaluation.judge_prompts import PASSAGE_CRITERIA, passage_question, read_passage_marks
from megatron_lwz.evaluation.parts import Piece, measure_parts
from megatron_lwz.evaluation.slop import SlopLists
from megatron_lwz.evaluation.statistics import Estimate, estimate
from megatron_lwz.rewards.judge_client import Judge

LABELS = {
    "quality": "quality",
    **{name: name for name in PASSAGE_CRITERIA},
    "slop": "slop per 1,000 words",
    "repeated": "8-grams that stood before",
    "near_duplicates": "near-duplicate paragraphs",
    "distinct_1": "distinct words",
    "distinct_2": "distinct 2-grams",
    "language_share": "in the prompt's language",
    "length": "length, words + CJK characters",
}
"""Maps each metric to its name in tables. All but quality, its criteria, slop and length are shares of 1."""
LOWER_IS_BETTER = ("slop", "repeated", "near_duplicates")
UNJUDGED = ("length",)
"""Metrics whose change says nothing about quality."""
MEASURED = ("slop", "repeated", "near_duplicates", "distinct_1", "distinct_2", "language_share", "length")
"""The metrics that need no judge."""
FEWEST = 10
"""Prompts from which a decay is claimed."""
CHANGE = "change/"
"""Begins the name of a metric's difference between the last quarter and the first."""


@dataclass(frozen=True)
class Decay:
    """The first part in which a metric is surely worse than in the first parts. `part` counts from 1; None without one.

    `differences` holds for each part the mean difference to the first `reference` parts of the same text, with intervals
    that hold together with 95 %; None for the reference itself and for parts of fewer than FEWEST prompts.
    """

    part: int | None
    differences: Sequence[Estimate | None]


@dataclass(frozen=True)
class CurveReport:
    """Estimates by metric and part, the decays, means and changes by metric, and a row per text."""

    parts: int
    reference: int
    curves: Mapping[str, Sequence[Estimate | None]]
    decays: Mapping[str, Decay]
    metrics: Mapping[str, Estimate]
    rows: Sequence[Mapping[str, Any]]
    unjudged: int

    def as_json(self) -> dict[str, Any]:
        """Returns the content of curve.json. Rows are stored in a separate file."""
        metrics = {name: value.as_json() for name, value in self.metrics.items()}
        return {"kind": "curve", "metrics": metrics, "unjudged": self.unjudged} | self.over_position()

    def over_position(self) -> dict[str, Any]:
        """Returns the curves and the decays, for a result file."""
        return {
            "parts": self.parts,
            "reference": self.reference,
            "curves": {name: _as_json(values) for name, values in self.curves.items()},
            "decays": {
                name: {"part": decay.part, "differences": _as_json(decay.differences)}
                for name, decay in self.decays.items()
            },
        }


async def judge_parts(
    pieces: Sequence[Piece], judge: Judge, shown: Shown = lambda *_: None
) -> list[list[dict[str, float] | None]]:
    """Asks the judge for the marks of every part, each by itself. Raises EngineError for a judge that answers nothing.

    The judge is told neither the part's place nor what stands before it, so nothing but the text distinguishes the parts.
    """
    questions = [passage_question(piece.prompt or "", part) for piece in pieces for part in piece.parts]
    verdicts = iter(await ask_all(judge, questions, read_passage_marks, shown))
    return [[verdict.value if (verdict := next(verdicts)) else None for _ in piece.parts] for piece in pieces]


def summarise(
    pieces: Sequence[Piece],
    *,
    slop: SlopLists | None = None,
    marks: Sequence[Sequence[Mapping[str, float] | None]] | None = None,
    lower_is_better: Collection[str] = (),
    section: FormatReward | None = None,
) -> CurveReport:
    """Measures every part, adds its `marks` (of a judge, with `quality`), and compares the parts of each text.

    `lower_is_better` names the marks that are.

    Texts may differ in their number of parts; a later part then stands for fewer of them. The first quarter of the parts
    of the longest text is the reference.
    """
    measured = [measure_parts(piece, section or FormatReward(), slop) for piece in pieces]
    for rows, found in zip(measured, marks or [], strict=False):
        for row, mark in zip(rows, found, strict=True):
            row |= mark or {}
    unjudged = sum(mark is None for found in marks or [] for mark in found)
    named = dict.fromkeys(name for rows in measured for row in rows for name in row)
    names = [*(name for name in LABELS if name in named), *(name for name in named if name not in LABELS)]
    ids = [piece.id for piece in pieces]
    table = {name: [[row.get(name) for row in rows] for rows in measured] for name in names}
    rows = [_row(piece, rows, names) for piece, rows in zip(pieces, measured, strict=True)]
    return report(table, ids, rows, unjudged=unjudged, lower_is_better=(*LOWER_IS_BETTER, *lower_is_better))


def report(
    table: Mapping[str, Sequence[Sequence[float | None]]],
    ids: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    unjudged: int = 0,
    lower_is_better: Collection[str] = (),
) -> CurveReport:
    """Returns the curves of a table: metric → text → value of each part, None where a text has no value."""
    parts = max(len(text) for values in table.values() for text in values)
    return CurveReport(
        parts,
        max(1, parts // 4),
        {name: [_column(values, ids, part) for part in range(parts)] for name, values in table.items()},
        {
            name: find_decay(values, ids, parts=parts, lower_is_better=name in lower_is_better)
            for name, values in table.items()
            if name not in UNJUDGED
        },
        _totals(table, ids),
        rows,
        unjudged,
    )


def find_decay(
    values: Sequence[Sequence[float | None]], ids: Sequence[Hashable], *, parts: int, lower_is_better: bool
) -> Decay:
    """Returns where the values of texts (one sequence of parts each) get worse than at the beginning of the same text.

    A part counts as worse if the interval of the mean difference to the first quarter, over texts that have both, lies on
    the worse side of 0. The intervals of all later parts hold together with 95 %.
    """
    reference = max(1, parts // 4)
    starts = [_mean([v for v in text[:reference] if v is not None]) for text in values]
    differences: list[Estimate | None] = [None] * parts
    first: int | None = None
    for part in range(reference, parts):
        pairs = [
            (value - start, name)
            for text, start, name in zip(values, starts, ids, strict=True)
            if start is not None and part < len(text) and (value := text[part]) is not None
        ]
        if len({name for _, name in pairs}) < FEWEST:
            continue
        found = estimate([value for value, _ in pairs], [name for _, name in pairs], comparisons=parts - reference)
        differences[part] = found
        if first is None and found is not None and (found.low > 0 if lower_is_better else found.high < 0):
            first = part + 1
    return Decay(first, differences)


def _column(values: Sequence[Sequence[float | None]], ids: Sequence[str], part: int) -> Estimate | None:
    pairs = [
        (value, name)
        for text, name in zip(values, ids, strict=True)
        if part < len(text) and (value := text[part]) is not None
    ]
    return estimate([value for value, _ in pairs], [name for _, name in pairs])


def _totals(table: Mapping[str, Sequence[Sequence[float | None]]], ids: Sequence[str]) -> dict[str, Estimate]:
    """Returns each metric's mean over the texts of their mean over parts, and its change from first to last quarter."""
    found = {}
    for name, values in table.items():
        for label, reduce in ((name, _whole), (CHANGE + name, _change)):
            kept = [(value, key) for text, key in zip(values, ids, strict=True) if (value := reduce(text)) is not None]
            figure = estimate([value for value, _ in kept], [key for _, key in kept])
            if figure is not None:
                found[label] = figure
    return found


def _row(piece: Piece, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Returns a text's row: what `_totals` averages, and the metrics of every part."""
    found: dict[str, Any] = {"id": piece.id, "sample": piece.sample}
    for name in names:
        values = [row.get(name) for row in rows]
        totals = {name: _whole(values), CHANGE + name: _change(values)}
        found |= {key: value for key, value in totals.items() if value is not None}
    return found | {"parts": list(rows)}


def _whole(values: Sequence[float | None]) -> float | None:
    return _mean([value for value in values if value is not None])


def _change(values: Sequence[float | None]) -> float | None:
    """Returns last quarter − first quarter of a text's parts."""
    size = max(1, len(values) // 4)
    first, last = _whole(values[:size]), _whole(values[-size:])
    return last - first if first is not None and last is not None and len(values) > 1 else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _as_json(values: Sequence[Estimate | None]) -> list[dict[str, Any] | None]:
    return [value.as_json() if value is not None else None for value in values]
