"""The log of a run's starts.

A run that was rewound repeats steps in a new attempt; weight versions name the attempt.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from pathlib import Path

from megatron_lwz import __version__
from megatron_lwz.distributed import exchange
from megatron_lwz.run_paths import RunPaths

_PACKAGES = ("torch", "megatron-core", "transformers")


def record_attempt(run: RunPaths, step: int) -> int:
    """Appends this start, at `step` finished updates, to `attempts.jsonl`; returns its number, counted from 0.

    Collective.
    """
    return int(exchange.from_rank_zero(lambda: _append(run.attempts, step)))


def _append(path: Path, step: int) -> int:
    number = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
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


def _version(package: str) -> str | None:
    """Returns None for a package that is not installed: transformers is not always needed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
