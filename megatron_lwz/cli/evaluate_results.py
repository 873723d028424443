"""Code shared by evaluation commands: the output folder, result files, and the table on the console."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from megatron_lwz.cli.common import UsageError, console
from megatron_lwz.errors import refusal
from megatron_lwz.evaluation.statistics import Estimate
from megatron_lwz.report.evaluation import number
from megatron_lwz.writing import write_text


def output_folder(path: Path) -> Path:
    """Creates the folder and returns it. Raises UsageError.

    Call it where the first result is written. `common.check_folder` looks before the work whether it will succeed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be created {refusal(error)}") from error
    return path


def warn(text: str) -> None:
    """Prints a warning to stderr."""
    console(stderr=True).print(f"warning: {text}", markup=False)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a result file, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n", private=True)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a JSONL file, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), private=True)


def show_estimates(title: str, estimates: Mapping[str, Estimate], labels: Mapping[str, str] | None = None) -> None:
    """Prints name, mean and 95 % interval."""
    table = Table(title=escape(title), title_justify="left")
    for column in ("", "mean", "95 % interval", "n"):
        table.add_column(column, justify="right" if column else "left")
    for name, value in estimates.items():
        interval = f"{number(value.low)} … {number(value.high)}"
        table.add_row(escape((labels or {}).get(name, name)), number(value.value), interval, str(value.count))
    console().print(table)
