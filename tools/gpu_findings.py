"""What one part of `make gpu-check` found: tables and failures in a JSON file, rewritten whenever something is added."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """One table of the page. `rows` hold strings, one per column; `note` stands above it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Findings:
    """Collects tables, figures and failures. What was added before a part is killed is in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tables: list[Table] = []
        self._figures: dict[str, Any] = {}
        self.failures: list[str] = []
        self._write()

    def add(self, table: Table) -> None:
        """Adds a table, or replaces the one of the same title."""
        self._tables = [known for known in self._tables if known.title != table.title] + [table]
        self._write()

    def figures(self, name: str, value: object) -> None:
        """Adds numbers for programs; they appear in the JSON file only."""
        self._figures[name] = value
        self._write()

    def fail(self, text: str) -> None:
        """Adds a failure, in one line."""
        self.failures.append(" ".join(text.split()))
        self._write()

    def _write(self) -> None:
        made = {"tables": [asdict(table) for table in self._tables], "failures": self.failures}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(made | {"figures": self._figures}, indent=1) + "\n", encoding="utf-8")
        new.replace(self._path)


def run_part(work: Callable[[Findings, str], None], description: str) -> int:
    """Runs `work(findings, device)` with the command line of a part. Returns 1 if it found a failure, else 0."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True, help="cpu: a rehearsal at tiny size")
    parser.add_argument("--json", type=Path, required=True, help="file for what is found")
    options = parser.parse_args()
    findings = Findings(options.json)
    work(findings, options.device)
    for failure in findings.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if findings.failures else 0
