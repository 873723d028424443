"""Selects the run's best checkpoint on the held-out prompts.

The checkpoint that `checkpoints/best` names is not deleted.
"""

from __future__ import annotations

import logging
import math

from megatron_lwz.config import Config
from megatron_lwz.errors import ConfigError
from megatron_lwz.metrics import read_metrics
from megatron_lwz.reading import read_text
from megatron_lwz.run_paths import RunPaths, step_name
from megatron_lwz.training.checkpoint_writer import write_pointer

log = logging.getLogger(__name__)


def mark_best(run: RunPaths, config: Config, step: int) -> None:
    """Writes the name of the best-evaluated checkpoint up to `step` into `checkpoints/best`; the earliest of equals.

    Does nothing without `checkpoint.best_metric`, or before any checkpoint is evaluated. Rank 0 only. Raises
    ConfigError for a metric that the evaluations do not have, DataError for a file that is not the run's.
    """
    metric, path = config.checkpoint.best_metric, run.evaluations
    if metric is None or not path.is_file():
        return
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    if rows and not any(metric in row for row in rows):
        known = sorted({name for row in rows for name in row} - {"step"})
        raise ConfigError("checkpoint.best_metric", metric, f"no evaluation has it; there are {', '.join(known)}")
    sign = 1 if config.checkpoint.best_direction == "max" else -1
    found = [
        (sign * row[metric], -row["step"], name)
        for row in rows
        for name in (step_name(int(row["step"])),)
        if math.isfinite(row.get(metric, math.nan)) and (run.checkpoints / name / "metadata.json").is_file()
    ]
    if not found:
        return
    value, _, name = max(found)
    pointer = run.best
    if pointer.is_file() and read_text(pointer).strip() == name:
        return
    write_pointer(pointer, name)
    log.info("best checkpoint: %s, %s %.4g", name, metric, sign * value)
