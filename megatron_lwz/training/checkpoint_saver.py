"""Saves the checkpoints of a run while training continues, one at a time, and keeps only the newest."""

from __future__ import annotations

import datetime
import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from megatron_lwz.distributed import exchange, groups, host_memory, termination
from megatron_lwz.errors import CheckpointError
from megatron_lwz.run_paths import LATEST, STEPS, step_name
from megatron_lwz.training.checkpoint import pointed_at, run_state
from megatron_lwz.training.checkpoint_writer import Snapshot, half_written, write_pointer, write_snapshot
from megatron_lwz.training.resume import keep_damaged
from megatron_lwz.training.state import TrainState

CLOSING_SECONDS = 12.0
"""Part of the time after a signal that is reserved for closing the engines and the journal."""

MOST_OF_FREE = 0.8
"""Largest part of a machine's free memory that the copies of a checkpoint may take."""

log = logging.getLogger(__name__)


class CheckpointSaver:
    """Saves `state` into `folder`; a context manager. All ranks make the same calls.

    With `checkpoint.asynchronous` training stops only while the state is copied into host memory; where a machine has no
    room for the copy, it waits for the save. A thread on every rank then writes the copy, over a separate process group.
    Rank 0's thread gives the folder its name, makes it the latest and deletes old ones. When a write fails, the next call
    raises the error, on all ranks. Leaving the context waits for the last write, also when an error ends the run. After a
    signal it waits only as long as there is time.
    """

    def __init__(
        self, state: TrainState, folder: Path, on_complete: Callable[[int], None] = lambda _step: None
    ) -> None:
        """`on_complete(step)` is called on every rank, between two steps, when a checkpoint is complete on disk."""
        self._state, self._folder, self._on_complete = state, folder, on_complete
        self._group: dist.ProcessGroup | None = None
        if state.config.checkpoint.asynchronous:
            timeout = datetime.timedelta(minutes=state.config.parallel.timeout_minutes)
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._writing: Future[None] | None = None
        self._step = state.step
        self._begun = 0.0
        self._waits = False
        self.longest: float | None = None
        """Seconds from the start of a save until it was complete on disk, the most so far; None before the first."""
        if groups.is_rank_zero():
            for left in half_written(folder):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            keep_damaged(folder, state.step)

    def save(self, extra: dict[str, Any]) -> None:
        """Starts to save the current state, once an earlier save is complete. Collective.

        `extra` is JSON: the state that the stage needs to resume (the same on all ranks). Raises CheckpointError.
        """
        self.wait()
        self._begun = time.monotonic()
        snapshot = run_state(self._state, extra)
        asynchronous = self._group is not None and self._has_room(snapshot)
        if asynchronous:
            snapshot = snapshot.independent()
        self._writing, self._step = Future(), self._state.step
        arguments = (snapshot, self._folder / step_name(self._step), self._writing)
        if asynchronous:
            threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True).start()
        else:
            self._write(*arguments)
            self.wait()

    def _has_room(self, snapshot: Snapshot) -> bool:
        """Returns whether the copies of all ranks fit in the memory of their machines. Collective."""
        share = exchange.largest(host_memory.share(snapshot.size))
        if share > MOST_OF_FREE and not self._waits:
            self._waits = True
            if groups.is_rank_zero():
                log.warning(
                    "checkpoint.asynchronous: the copy of step %d would take %.0f %% of a machine's free memory, so training "
                    "waits for this save, and for others like it", self._state.step, 100 * share,
                )  # fmt: skip
        return share <= MOST_OF_FREE

    def save_once(self, extra: dict[str, Any]) -> None:
        """Does the same unless the state was saved, or loaded, as it is. Collective. Raises CheckpointError."""
        if self._state.step != self._step:
            self.save(extra)

    def poll(self) -> None:
        """Completes a save whose files are written. Call it after every step. Collective while a save is in flight.

        Raises CheckpointError.
        """
        if self._writing is not None and exchange.broadcast_json(self._writing.done()):
            self.wait()

    def wait(self) -> None:
        """Waits for the save in flight, if any, and completes it. Raises CheckpointError."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
            self._on_complete(self._step)

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif self._writing is not None:
            try:
                self._writing.result(termination.patience(reserve=CLOSING_SECONDS))
            except CheckpointError as failed:  # raising it would hide the error that ended the run
                log.warning("%s", failed)
            except TimeoutError:
                log.warning("no time to complete the checkpoint of step %d: the one before it stays", self._step)

    def _write(self, snapshot: Snapshot, target: Path, done: Future[None]) -> None:
        try:
            write_snapshot(snapshot, target, group=self._group, on_disk=lambda: self._publish(target))
        except BaseException as error:
            done.set_exception(error)
        else:
            self.longest = max(self.longest or 0.0, time.monotonic() - self._begun)
            done.set_result(None)

    def _publish(self, target: Path) -> None:
        """On rank 0: makes `target` the latest checkpoint and deletes those that `checkpoint.keep` does not cover."""
        write_pointer(self._folder / LATEST, target.name)
        # Folders of later steps are left from before the run was rewound; they are deleted when the run passes them.
        older = sorted(path for path in self._folder.glob(STEPS) if path.name < target.name)
        kept = pointed_at(self._folder)
        for path in older[: max(0, len(older) + 1 - self._state.config.checkpoint.keep)]:
            if path.name not in kept:
                shutil.rmtree(path)
