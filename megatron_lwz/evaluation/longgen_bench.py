"""LongGenBench (2409.02076): how much of a long document is written, and whether its entries contain what was asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lwz.evaluation.asking import Shown, ask_all
from megatron_lwz.evaluation.curve import CurveReport
from megatron_lwz.evaluation.curve import report as curves_of
from megatron_lwz.evaluation.longgen_files import KINDS, Check, Document, Written, check_question, read_answer
from megatron_lwz.evaluation.statistics import Estimate, estimate
from megatron_lwz.rewards.judge_client import Judge

MEASURED = {
    "completion": "completion rate: entries written",
    "mentioned": "checks whose words stand in the entry",
    "words": "words",
}
"""Metrics without a judge, by their names in tables. All but the words are shares of 1."""
LABELS = MEASURED | {
    "stic_1": "STIC-1: checks met, of those on written entries",
    "stic_2": "STIC-2: checks met, of all",
    **{f"stic_1_{kind}": f"STIC-1, {kind}" for kind in KINDS},
}
PARTS = 8
"""Parts of a document for the curves over the position."""
_CONTENT = re.compile(r"[a-z]{4,}")
_STEM = 5

Verdicts = Sequence[Mapping[Check, bool]]


@dataclass(frozen=True)
class LongGenReport:
    """Estimates by metric, curves over the position, and a row per response. `unjudged` counts checks without a verdict."""

    metrics: Mapping[str, Estimate]
    curves: CurveReport
    rows: Sequence[Mapping[str, Any]]
    unjudged: int

    def as_json(self) -> dict[str, Any]:
        """Returns the content of longgen_bench.json. Rows are stored in a separate file."""
        metrics = {name: value.as_json() for name, value in self.metrics.items()}
        return {"kind": "longgen_bench", "metrics": metrics, "unjudged": self.unjudged} | self.curves.over_position()


async def judge_checks(
    documents: Mapping[str, Document],
    written: Sequence[Written],
    judge: Judge,
    *,
    template: str | None = None,
    shown: Shown = lambda *_: None,
) -> list[dict[Check, bool]]:
    """Asks one question per check whose entry is written. `template` is the public question.

    Returns the verdicts of each response. Raises EngineError for a judge that answers nothing.
    """
    asked = [
        (place, check)
        for place, one in enumerate(written)
        for check in documents[one.id].checks
        if check.number in one.entries
    ]
    questions = [check_question(written[place].entries[check.number], check.event, template) for place, check in asked]
    found: list[dict[Check, bool]] = [{} for _ in written]
    for (place, check), verdict in zip(asked, await ask_all(judge, questions, read_answer, shown), strict=True):
        if verdict is not None:
            found[place][check] = verdict.value
    return found


def summarise(
    documents: Mapping[str, Document], written: Sequence[Written], verdicts: Verdicts | None
) -> LongGenReport:
    """Returns the figures. `verdicts` holds for each response its checks on written entries, None without a judge.

    completion: the mean over documents. STIC-1 and STIC-2 pool the checks of all documents, as in the public scripts; a
    check on an entry that is not written counts in STIC-2 alone, as not met. Checks without a verdict are left out.
    """
    rows: list[dict[str, Any]] = []
    pooled: dict[str, list[tuple[float, str]]] = {}
    unjudged = 0
    for place, one in enumerate(written):
        document = documents[one.id]
        values: dict[str, list[tuple[int, float]]] = {
            "completion": [(n, float(n in one.entries)) for n in range(1, document.number + 1)],
            "mentioned": [(c.number, float(mentions(one.entries.get(c.number, ""), c.event))) for c in document.checks],
        }
        if verdicts is not None:
            given = verdicts[place]
            there = [check for check in document.checks if check.number in one.entries]
            unjudged += sum(check not in given for check in there)
            values["stic_1"] = [(check.number, float(given[check])) for check in there if check in given]
            missing = [(check.number, 0.0) for check in document.checks if check.number not in one.entries]
            values["stic_2"] = values["stic_1"] + missing
            for kind in KINDS:
                values[f"stic_1_{kind}"] = [(c.number, float(given[c])) for c in there if c in given and c.kind == kind]
        for name, found in values.items():
            pooled.setdefault(name, []).extend((value, one.id) for _, value in found)
        means = {name: sum(v for _, v in found) / len(found) for name, found in values.items() if found}
        curves = {
            name: _parts(values[name], document.number)
            for name in ("completion", "mentioned", "stic_2")
            if name in values
        }
        rows.append({"id": one.id, "sample": one.sample, "words": one.words} | means | {"parts": curves})
    metrics = {"completion": _mean(rows, "completion"), "words": _mean(rows, "words")}
    for name in LABELS:
        if name not in metrics and pooled.get(name):
            metrics[name] = estimate([value for value, _ in pooled[name]], [key for _, key in pooled[name]])
    table = {name: [row["parts"][name] for row in rows] for name in rows[0]["parts"]}
    ordered = {name: value for name in LABELS if (value := metrics.get(name)) is not None}
    return LongGenReport(ordered, curves_of(table, [row["id"] for row in rows], []), rows, unjudged)


def mentions(entry: str, event: str) -> bool:
    """Returns whether every content word of `event` (4 letters or more) stands in the entry, by its first 5 letters.

    It is a rough stand-in for a judge: other words for the same thing are missed, and a mention of something else counts.
    """
    stems = {word[:_STEM] for word in _CONTENT.findall(entry.lower())}
    asked = {word[:_STEM] for word in _CONTENT.findall(event.lower())}
    return bool(asked) and asked <= stems


def _parts(values: Sequence[tuple[int, float]], number: int) -> list[float | None]:
    """Returns the mean of (number of the entry, value) in each of PARTS parts of a document of `number` entries."""
    parts: list[list[float]] = [[] for _ in range(PARTS)]
    for place, value in values:
        parts[min(PARTS - 1, (place - 1) * PARTS // number)].append(value)
    return [sum(part) / len(part) if part else None for part in parts]


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> Estimate | None:
    return estimate([row[name] for row in rows], [row["id"] for row in rows])
