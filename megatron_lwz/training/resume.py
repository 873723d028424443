"""Resumes a run from its newest checkpoint that is whole.

A damaged one is reported, and stays under another name. The one before it is then taken: a run goes back to any of its
checkpoints, since metrics of later steps are dropped and the journal gives their groups back (rollout/recovery.py).
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from megatron_lwz.distributed import exchange, groups
from megatron_lwz.errors import CheckpointError, DamagedCheckpoint, DataError
from megatron_lwz.metrics import read_metrics, torn
from megatron_lwz.reading import read_text
from megatron_lwz.run_paths import LATEST, STEPS, RunPaths, free_ending, step_name, step_of
from megatron_lwz.training.checkpoint import latest, load_checkpoint
from megatron_lwz.training.checkpoint_writer import write_pointer
from megatron_lwz.training.state import TrainState

DAMAGED = ".damaged"
"""Ending of the name under which a damaged checkpoint is kept."""

log = logging.getLogger(__name__)


def check_records(run: RunPaths) -> None:
    """Checks the files of the run that it goes on writing: rows of metrics, and the pointer `best`. Collective.

    The last line of a file that a kill cut off is no fault; a log line says that it will be dropped. Raises DataError.
    """
    exchange.from_rank_zero(lambda: _check_records(run))


def _check_records(run: RunPaths) -> None:
    for path in (run.metrics, run.evaluations):
        if path.is_file():
            read_metrics(path)
            if cut := torn(path):
                log.warning("%s: the last line was cut off by a kill: its %d bytes are dropped", path, cut)
    if run.best.is_file() and re.fullmatch(STEPS, read_text(run.best).strip()) is None:
        raise DataError(run.best, "names no checkpoint: remove it, it is written again from evaluation.jsonl")


def restore(state: TrainState, run: RunPaths) -> dict[str, Any]:
    """Restores the newest checkpoint of the run that is whole; returns its `extra`. Changes no file. Collective.

    The run has a checkpoint. Raises CheckpointError if none is whole, or if it is another model's.
    """
    faults: list[str] = []
    names: list[str] = exchange.from_rank_zero(lambda: _newest_first(run))
    for name in names:
        try:
            extra = load_checkpoint(state, run.checkpoints / name)
        except DamagedCheckpoint as error:
            faults.append(f"{name}: {error.fault}")
            continue
        if faults and groups.is_rank_zero():
            lost = step_of(names[0]) - state.step
            log.warning("%s: damaged: %s", run.checkpoints, "; ".join(faults))
            log.warning(
                "the run goes back to %s: %d steps (%d to %d) are trained again; what is damaged stays as *%s",
                name, lost, state.step + 1, step_of(names[0]), DAMAGED,
            )  # fmt: skip
        return extra
    advice = "restore one from a copy, or choose another run.dir to begin anew"
    raise CheckpointError(run.checkpoints, f"no checkpoint is whole ({'; '.join(faults)}): {advice}")


def keep_damaged(checkpoints: Path, step: int) -> None:
    """Gives the checkpoints that `restore` passed over another name, and makes the one of `step` the latest. Rank 0 only.

    They are those after `step` up to the one that `latest` names. The run reaches their steps again, and would else
    replace them.
    """
    pointer = checkpoints / LATEST
    newest = latest(checkpoints.parent)
    if step == 0 or newest is None or (newest.name == step_name(step) and pointer.exists()):
        return
    for path in sorted(checkpoints.glob(STEPS)):
        if step < step_of(path.name) <= step_of(newest.name):
            path.rename(path.with_name(path.name + free_ending(path, DAMAGED)))
    write_pointer(pointer, step_name(step))


def _newest_first(run: RunPaths) -> list[str]:
    """Returns the names of the checkpoints up to the latest, which need not be there any more, newest first."""
    newest = latest(run.root)
    assert newest is not None, "a run without a checkpoint has nothing to restore"
    names = {path.name for path in run.checkpoints.glob(STEPS) if path.is_dir() and path.name <= newest.name}
    return sorted(names | {newest.name}, reverse=True)
