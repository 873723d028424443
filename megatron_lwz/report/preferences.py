"""The report of reward components checked on human choices, as a page and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from megatron_lwz.evaluation.agreement import LEAST, Agreement
from megatron_lwz.evaluation.preference_report import PreferenceReport
from megatron_lwz.evaluation.statistics import Estimate
from megatron_lwz.report.evaluation import charts, number, table
from megatron_lwz.report.evaluation_charts import intervals, matrix

Table = tuple[Sequence[str], Sequence[Sequence[object]]]
HEADS = ("component", "weight", "accuracy", "matched", "prefers longer", "orders agree", "says")
"""Heads of the table that the console shows too."""
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~])")


def main_table(found: PreferenceReport) -> Table:
    """Returns head and rows of the table of components, people last."""
    rows = [
        (c.name, f"{found.weights[c.name]:g}" if c.name in found.weights else "", shown(c.accuracy), shown(c.matched),
         shown(c.prefers_longer), shown(c.orders), c.line)
        for c in found.components
    ]  # fmt: skip
    longer = found.people["prefers_longer"]
    people = shown(Estimate(**longer)) if longer else "–"
    return HEADS, [*rows, ("people", "", "", f"{found.people['matched']} pairs", people, "", "")]


def shown(value: Estimate | None) -> str:
    """Formats a share with its interval, in percent."""
    return f"{100 * value.value:.1f} ({100 * value.low:.0f}–{100 * value.high:.0f})" if value else "–"


def preference_sections(found: PreferenceReport) -> dict[str, str]:
    """Returns the sections of the page."""
    names = [c.name for c in found.components if c.scored]
    shares = [[found.concord.get(a, {}).get(b) for b in names] for a in names]
    matched = {c.name: c.matched for c in found.components if c.matched}
    every = {c.name: c.accuracy for c in found.components if c.accuracy}
    head, rows = main_table(found)  # the last column holds sentences
    return {
        "Components": table(head[:-1], [row[:-1] for row in rows])
        + "".join(f"<p><b>{escape(c.name)}</b>: {escape(c.line)}</p>" for c in found.components)
        + "".join(f"<p>{escape(note)}</p>" for note in _notes(found))
        + charts(intervals("Agreement with people", every), intervals("Agreement at equal lengths", matched)),
        "Length": table(*_length_table(found))
        + charts(*(intervals(f"{c.name}: by length of the preferred text", c.bins) for c in found.components)),
        "Categories": "".join(table((column, *names), rows) for column, rows in _category_tables(found, names).items()),
        "Agreement between components": matrix("Same preference", names, shares, note="share of pairs, ties half")
        if len(names) > 1
        else "",
        "Pairs": table(("", "count"), _counts(found)),
    }


def markdown(found: PreferenceReport, title: str, lead: str) -> str:
    """Returns the report as Markdown. Texts of the data are escaped."""
    names = [c.name for c in found.components if c.scored]
    parts = [f"# {_plain(title)}", _plain(lead), _grid(main_table(found)), *_notes(found)]
    parts += ["## Length", _grid(_length_table(found))]
    labels = list(dict.fromkeys(label for c in found.components for label in c.bins))
    bins = [(c.name, *(shown(c.bins.get(label)) for label in labels)) for c in found.components if c.bins]
    parts += ["Accuracy by the length of the preferred text:", _grid((("component", *labels), bins))] if bins else []
    for column, rows in _category_tables(found, names).items():
        parts += [f"## By {_plain(column)}", _grid(((column, *names), rows))]
    if len(names) > 1:
        rows = [(a, *(_percent(found.concord.get(a, {}).get(b)) for b in names)) for a in names]
        parts += ["## Agreement between components", _grid((("same preference", *names), rows))]
    return "\n\n".join([*parts, "## Pairs", _grid((("", "count"), _counts(found)))]) + "\n"


def _notes(found: PreferenceReport) -> list[str]:
    rule = (
        f"Matched: the longer text has at most {100 * found.tolerance:g} % more words + CJK characters, and choices of longer "
        "and of shorter texts count alike."
    )
    return [
        f"{rule} A component earns its weight if it agrees there in at least {100 * LEAST:g} %, with an interval above 50 %. "
        "All shares are in percent, with 95 % intervals; pairs of one prompt count as dependent. Equal scores count half."
    ]


def _length_table(found: PreferenceReport) -> Table:
    head = (
        "component",
        "people prefer the longer",
        "people prefer the shorter",
        "prefers longer",
        "correlation",
        "ties",
    )
    rows: list[Sequence[object]] = [
        (
            c.name,
            shown(c.longer_won),
            shown(c.shorter_won),
            shown(c.prefers_longer),
            _number(c.length_correlation),
            c.ties,
        )
        for c in found.components
    ]
    longer = found.people["prefers_longer"]
    people = (
        "people",
        "",
        "",
        shown(Estimate(**longer)) if longer else "–",
        _number(found.people["length_correlation"]),
        "",
    )
    return head, [*rows, people]


def _category_tables(found: PreferenceReport, names: Sequence[str]) -> dict[str, list[Sequence[object]]]:
    """Returns column → rows of (value, accuracy of each component)."""
    of: Mapping[str, Agreement] = {c.name: c for c in found.components}
    columns = dict.fromkeys(column for name in names for column in of[name].by)
    tables: dict[str, list[Sequence[object]]] = {}
    for column in columns:
        values = dict.fromkeys(value for name in names for value in of[name].by.get(column, ()))
        tables[column] = [
            (value, *(_counted(of[name].by.get(column, {}).get(value)) for name in names)) for value in sorted(values)
        ]
    return tables


def _counted(value: Estimate | None) -> str:
    return f"{shown(value)}, n = {value.count}" if value else "–"


def _counts(found: PreferenceReport) -> list[Sequence[object]]:
    masked = [
        (f"{c.name}: {reason}", count) for c in found.components for reason, count in sorted(c.masked.items()) if count
    ]
    left = [(f"left out: {reason}", count) for reason, count in sorted(found.left_out.items())]
    forms = [(form, count) for form, count in sorted(found.forms.items()) if count]
    return [("pairs", found.pairs), *forms, *left, *masked]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}"


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _plain(text: object) -> str:
    """Returns a text of the data so that Markdown shows it as it is, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def _grid(cells: Table) -> str:
    head, rows = cells
    lines = [head, ["---"] * len(head), *rows]
    plain = [[cell if cell == "---" else _plain(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in plain)
