"""The results of a finished run on the console: a table of metrics before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from megatron_lwz.cli.common import console
from megatron_lwz.errors import DataError
from megatron_lwz.metrics import read_history
from megatron_lwz.reading import read_object
from megatron_lwz.run_paths import RunPaths

ROWS = {
    "format_valid": "valid format",
    "length_in_range": "length in the asked range",
    "near_duplicates": "near-duplicate paragraphs",
    "reward/format": "format reward",
    "reward/length": "length reward",
    "reward/writing": "writing reward",
    "rollout/mean_length": "length, tokens",
    "rollout/think_length": "thinking, words",
    "rollout/truncated": "truncated",
}
"""Metric → its label in the table."""


def show_results(run_dir: Path) -> None:
    """Prints the table of the run's first and last evaluation (else of its first and last training steps)."""
    before, after, what = _ends(run_dir)
    table = Table(title=f"{run_dir.name}: {what}", title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for name, label in ROWS.items():
        if name in before and name in after:
            table.add_row(label, _number(before[name]), _number(after[name]))
    console().print(table)


def _ends(run_dir: Path) -> tuple[Mapping[str, float], Mapping[str, float], str]:
    evaluated = [
        {name.removeprefix("eval/"): value for name, value in row.items() if name.startswith("eval/")}
        for row in read_history(run_dir)
    ]
    evaluated = [row for row in evaluated if row]
    if len(evaluated) > 1:
        return evaluated[0], evaluated[-1], "held-out prompts, before and after"
    path = RunPaths(run_dir).summary
    summary = read_object(path)
    if not isinstance(summary.get("first"), dict) or not isinstance(summary.get("last"), dict):
        raise DataError(path, "holds no means of the first and last steps: it is written at the end of a run")
    return summary["first"], summary["last"], "training prompts, first and last steps"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
