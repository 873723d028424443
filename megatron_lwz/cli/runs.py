"""`lwz runs [FOLDER]`: the runs below a folder, what each is doing and how far it has come."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from megatron_lwz.cli import common
from megatron_lwz.config import load_config
from megatron_lwz.errors import LwzError, printable
from megatron_lwz.file_lock import holder_of
from megatron_lwz.metrics import read_metrics
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.attempts import last_attempt

DEPTH = 3
"""Folders below the given one in which runs are looked for. What lies within a run is not searched."""


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: str
    stage: str
    """Of its last start; empty if that did not record it."""
    state: str
    """`running`, with the process that writes it; `finished`; `stopped`; or the fault of the file that cannot be read."""
    step: int
    steps: int
    """Of training.steps; 0: the data decides, or unknown."""
    metrics: dict[str, float | None]
    """The last step's loss, or its mean score of every reward component."""
    changed: float
    """When a step, an evaluation or a start was last written, in seconds since 1970."""


def main(argv: Sequence[str]) -> None:
    """Prints the runs below a folder, the one that changed last first. Raises LwzError."""
    parser = common.Parser(prog="lwz runs", description="List the runs below a folder.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="default: runs")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    asked = parser.parse_args(argv)
    if not asked.folder.is_dir():
        raise common.UsageError(f"{asked.folder}: no such folder: name one that holds run folders")
    runs = sorted((_look(folder) for folder in _folders(asked.folder, DEPTH)), key=lambda run: -run.changed)
    console = common.console()
    if asked.json:
        for run in runs:
            console.print(json.dumps(asdict(run), ensure_ascii=False), markup=False)
    elif runs:
        console.print(_table(runs, asked.folder))
    else:
        console.print(f"no run folder in {asked.folder}, down to {DEPTH} folders below it", markup=False)


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    run = RunPaths(folder)
    if run.config.is_file() and (run.attempts.exists() or run.metrics.exists()):
        yield folder
    elif depth > 0:
        try:
            inner = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
        except OSError:  # not ours to read
            return
        for entry in inner:
            yield from _folders(entry, depth - 1)


def _look(folder: Path) -> Run:
    run = RunPaths(folder)
    stamps = [path.stat().st_mtime for path in (run.metrics, run.evaluations, run.attempts) if path.exists()]
    stage, steps, step = "", 0, 0
    metrics: dict[str, float | None] = {}
    try:
        stage = str(last_attempt(run.attempts).get("stage") or "") if run.attempts.exists() else ""
        rows = read_metrics(run.metrics) if run.metrics.exists() else []
        if rows:
            step, metrics = int(rows[-1]["step"]), _telling(rows[-1])
        steps = load_config(run.config).training.steps or 0
        state = _state(run)
    except (LwzError, OSError) as error:
        state = str(error)
    return Run(str(folder), stage, state, step, steps, metrics, max(stamps, default=0.0))


def _state(run: RunPaths) -> str:
    if (holder := holder_of(run.lock)) is not None:
        return f"running: {holder}"
    return "finished" if run.summary.exists() else "stopped"


def _telling(row: dict[str, float]) -> dict[str, float | None]:
    """The few metrics that say most: of GRPO the mean score of every reward component, else the loss."""
    scores = {name.removeprefix("reward/"): value for name, value in row.items() if name.startswith("reward/")}
    chosen = scores or {name: row[name] for name in ("loss",) if name in row}
    return {name: None if math.isnan(value) else value for name, value in chosen.items()}


def _table(runs: Sequence[Run], above: Path) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("run", "stage", "state", "step", "last step", "changed"):
        table.add_column(title, overflow="fold", no_wrap=title in ("step", "changed"))
    for run in runs:
        values = ", ".join(f"{name} {value:.3g}" for name, value in run.metrics.items() if value is not None)
        step = f"{run.step} / {run.steps}" if run.steps else str(run.step)
        cells = (
            str(Path(run.path).relative_to(above)),
            run.stage,
            run.state,
            step,
            values,
            _ago(time.time() - run.changed),
        )
        table.add_row(*(printable(cell).replace("[", r"\[") for cell in cells))
    return table


def _ago(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return "just now"


if __name__ == "__main__":
    sys.exit(common.run(main))
