"""The log of a run's starts.

A run that was rewound repeats steps in a new attempt; weight versions name the attempt.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_lwz import __version__

_PACKAGES = ("torch", "megatron-core", "transformers")


def append_attempt(path: Path, step: int, about: Mapping[str, Any]) -> int:
    """Appends a start at `step` finished updates to `attempts.jsonl`; returns its number, counted from 0. Rank 0 only.

    `about` is JSON: what else is known of the start.
    """
    before = path.read_bytes() if path.exists() else b""
    number = len(before.splitlines())
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
    cut_off = "" if not before or before.endswith(b"\n") else "\n"  # by a kill
    with path.open("a", encoding="utf-8") as stream:
        stream.write(cut_off + json.dumps(row, ensure_ascii=False) + "\n")
    return number


def last_attempt(path: Path) -> dict[str, Any]:
    """Returns the newest row that can be read; {} without one."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:  # cut off by a kill
            continue
        if isinstance(row, dict):
            return row
    return {}


def _version(package: str) -> str | None:
    """Returns None for a package that is not installed: transformers is not always needed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
