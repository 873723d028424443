"""The page that compares several runs, with the published figures shown separately."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from megatron_lwz.evaluation.compare import Row, Run, difference, label
from megatron_lwz.evaluation.published import ARENA_NOTE, PAPER, WRITING_BENCH_NOTE
from megatron_lwz.evaluation.statistics import Estimate
from megatron_lwz.report.evaluation import charts, number, table
from megatron_lwz.report.evaluation_charts import intervals

_NAMES = {
    "arena_write": "Arena-Write",
    "writing_bench": "WritingBench",
    "longbench_write": "LongBench-Write",
    "hello_bench": "HelloBench",
    "longgen_bench": "LongGenBench",
    "constory": "ConStory-Bench",
    "curve": "Over the position in the text",
    "text": "Without a judge",
}
_DRAWN = {"Elo", "Overall", "s_l", "s_q", "near_duplicates", "format_valid", "change/quality", "change/repeated"}
"""Metrics that get a chart."""


def comparison_sections(runs: Sequence[Run], found: Sequence[Row]) -> dict[str, str]:
    """Returns one section per benchmark and condition, then the published figures."""
    sections: dict[str, list[str]] = {}
    for (benchmark, condition), group in groupby(found, key=lambda row: (row.benchmark, row.condition)):
        rows = list(group)
        note = f'<p class="note">{escape(condition)}</p>' if condition else ""
        drawn = [
            intervals(label(r), {n.name: n.figures[r] for n in runs if r in n.figures})
            for r in rows
            if r.metric in _DRAWN
        ]
        parts = [note, _table(runs, rows), charts(*drawn), _differences(runs, rows)]
        sections.setdefault(_NAMES[benchmark], []).append("".join(parts))
    published = [(p.model, p.writing_bench or "–", p.arena_elo or "–") for p in PAPER]
    notes = f'<p class="note">WritingBench: {WRITING_BENCH_NOTE}. Arena-Write: {ARENA_NOTE}. Not measured here.</p>'
    head = ("as published, arXiv 2506.18841", "WritingBench", "Arena-Write Elo")
    return {name: "".join(parts) for name, parts in sections.items()} | {"As published": notes + table(head, published)}


def _table(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        cells = [run.figures.get(row) for run in runs]
        shown = (f"{number(e.value)} ({number(e.low)} … {number(e.high)})" if e else "–" for e in cells)
        lines.append((label(row), *shown))
    return table(("", *(run.name for run in runs)), lines)


def _differences(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """Returns the table of each run minus the first, paired by prompt.

    Differences whose interval excludes 0 are marked.
    """
    lines = []
    for row in rows:
        found = [difference(run, runs[0], row) for run in runs[1:]]
        if any(found):
            lines.append((label(row), *(_signed(e) for e in found)))
    if not lines:
        return ""
    note = '<p class="note">Minus the first run, over the prompts that both answered; * = 0 is outside the 95 % interval.</p>'
    return f"<h3>Differences to {escape(runs[0].name)}</h3>{note}{table(('', *(r.name for r in runs[1:])), lines)}"


def _signed(found: Estimate | None) -> str:
    if found is None:
        return "–"
    sure = "*" if found.low > 0 or found.high < 0 else ""
    return f"{'+' if found.value > 0 else ''}{number(found.value)}{sure} ({number(found.low)} … {number(found.high)})"
