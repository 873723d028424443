"""The log of a run's starts.

A run that was rewound repeats steps in a new attempt; weight versions name the attempt.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from megatron_lwz import __version__
from megatron_lwz.metrics import torn
from megatron_lwz.reading import Row, parse_row
from megatron_lwz.writing import naming

_PACKAGES = ("torch", "megatron-core", "transformers")

log = logging.getLogger(__name__)


def append_attempt(path: Path, step: int, about: Mapping[str, Any]) -> int:
    """Appends a start at `step` finished updates to `attempts.jsonl`; returns its number, counted from 0. Rank 0 only.

    `about` is JSON: what else is known of the start.
    """
    number = _next_number(path) if path.exists() else 0
    row = {
        "attempt": number,
        "step": step,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "process": os.getpid(),
        **about,
        "python": platform.python_version(),
        "megatron-lwz": __version__,
        **{name: _version(name) for name in _PACKAGES},
    }
    with naming(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return number


def last_attempt(path: Path) -> dict[str, Any]:
    """Returns the newest row that can be read; {} without one."""
    for place, line in reversed(list(enumerate(_lines(path), start=1))):
        row = parse_row(line, path, place)
        if isinstance(row, Row):
            return dict(row.value)
    return {}


def _next_number(path: Path) -> int:
    """Returns a number that no earlier start has. Cuts a line that a kill truncated; a log line says what is odd."""
    if cut := torn(path):
        log.warning("%s: the last line was cut off by a kill: its %d bytes are removed", path, cut)
        os.truncate(path, path.stat().st_size - cut)
    elif (data := path.read_bytes()) and not data.endswith(b"\n"):
        with path.open("ab") as stream:
            stream.write(b"\n")
    lines = _lines(path)
    for place, line in enumerate(lines, start=1):
        row = parse_row(line, path, place)
        found = row.value.get("attempt") if isinstance(row, Row) else None
        if type(found) is not int or not 0 <= found < len(lines):
            log.warning("%s, line %d: not as a run wrote it; it still counts as a start", path, place)
    return len(lines)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


@cache
def _version(package: str) -> str | None:
    """Returns None for a package that is not installed: transformers is not always needed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
