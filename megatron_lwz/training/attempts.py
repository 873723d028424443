"""The log of a run's starts.

A run that was rewound repeats steps in a new attempt; weight versions name the attempt.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import platform
from pathlib import Path

from megatron_lwz import __version__
from megatron_lwz.distributed import exchange
from megatron_lwz.metrics import torn
from megatron_lwz.reading import Row, parse_row
from megatron_lwz.run_paths import RunPaths

_PACKAGES = ("torch", "megatron-core", "transformers")

log = logging.getLogger(__name__)


def record_attempt(run: RunPaths, step: int) -> int:
    """Appends this start, at `step` finished updates, to `attempts.jsonl`; returns its number, counted from 0.

    Collective.
    """
    return int(exchange.from_rank_zero(lambda: _append(run.attempts, step)))


def _append(path: Path, step: int) -> int:
    number = _next_number(path) if path.exists() else 0
    row = {
        "attempt": number,
        "step": step,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "python": platform.python_version(),
        "megatron-lwz": __version__,
        **{name: _version(name) for name in _PACKAGES},
    }
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    return number


def _next_number(path: Path) -> int:
    """Returns a number that no earlier start has. Cuts a line that a kill truncated; a log line says what is odd."""
    data = path.read_bytes()
    if cut := torn(path):
        log.warning("%s: the last line was cut off by a kill: its %d bytes are removed", path, cut)
        data = data[:-cut]
    elif data and not data.endswith(b"\n"):
        data += b"\n"
    path.write_bytes(data)
    lines = data.splitlines()
    for place, line in enumerate(lines, start=1):
        row = parse_row(line, path, place)
        found = row.value.get("attempt") if isinstance(row, Row) else None
        if type(found) is not int or not 0 <= found < len(lines):
            log.warning("%s, line %d: not as a run wrote it; it still counts as a start", path, place)
    return len(lines)


def _version(package: str) -> str | None:
    """Returns None for a package that is not installed: transformers is not always needed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
