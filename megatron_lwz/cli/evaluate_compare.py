"""`lwz evaluate compare [NAME=]DIR … --output DIR`: runs side by side, with intervals, and the published figures."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from megatron_lwz.cli import common
from megatron_lwz.cli.evaluate_results import output_folder, write_json
from megatron_lwz.evaluation.compare import Row, Run, difference, label, mixed, read_run, rows
from megatron_lwz.evaluation.published import ARENA_NOTE, PAPER, WRITING_BENCH_NOTE
from megatron_lwz.report.comparison import comparison_sections
from megatron_lwz.report.evaluation import number, write_page


def main(argv: Sequence[str]) -> None:
    """Writes compare.json, compare.csv and compare.html. Raises LwzError."""
    parser = common.Parser(prog="lwz evaluate compare", description="Evaluations of several runs side by side.")
    parser.add_argument("runs", metavar="[NAME=]DIR", nargs="+", help="folders that evaluation commands wrote into")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the comparison goes")
    parser.add_argument("--title", default="Evaluations side by side")
    options = parser.parse_args(list(argv))
    runs = [_run(text) for text in options.runs]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise common.UsageError(f"{', '.join(names)}: two runs of one name; write NAME=DIR")
    found, folder = rows(runs), output_folder(options.output)
    _write(folder, options.title, runs, found)
    for benchmark in mixed(found):
        text = f"warning: {benchmark}: judged under different conditions; figures of different rows do not compare"
        common.console(stderr=True).print(text, markup=False)
    _show(runs, found)
    common.console().print(str(folder / "compare.html"), markup=False)


def _run(text: str) -> Run:
    if (folder := common.file_path(text)).is_dir():
        return read_run(folder)
    name, _, path = text.rpartition("=")
    return read_run(common.file_path(path), name)


def _write(folder: Path, title: str, runs: Sequence[Run], found: Sequence[Row]) -> None:
    figures = [
        vars(row)
        | {
            "runs": {run.name: run.figures[row].as_json() for run in runs if row in run.figures},
            "differences": {run.name: e.as_json() for run in runs[1:] if (e := difference(run, runs[0], row))},
        }
        for row in found
    ]
    published = {"writing_bench": WRITING_BENCH_NOTE, "arena_elo": ARENA_NOTE, "rows": [vars(row) for row in PAPER]}
    write_json(folder / "compare.json", {"kind": "compare", "figures": figures, "published": published})
    with (folder / "compare.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["benchmark", "condition", "metric", "run", "value", "low", "high", "count"])
        for row in found:
            for run in runs:
                if row in run.figures:
                    table.writerow([*vars(row).values(), run.name, *run.figures[row].as_json().values()])
    write_page(folder / "compare.html", title, f"{len(runs)} runs", comparison_sections(runs, found))


def _show(runs: Sequence[Run], found: Sequence[Row]) -> None:
    for (benchmark, condition), group in groupby(found, key=lambda row: (row.benchmark, row.condition)):
        table = Table(title=escape(f"{benchmark}: {condition}" if condition else benchmark), title_justify="left")
        table.add_column("")
        for run in runs:
            table.add_column(escape(run.name), justify="right")
        for row in group:
            cells = [run.figures.get(row) for run in runs]
            shown = [f"{number(e.value)} [{number(e.low)}, {number(e.high)}]" if e else "–" for e in cells]
            table.add_row(escape(label(row)), *map(escape, shown))
        common.console().print(table)


if __name__ == "__main__":
    sys.exit(common.run(main))
