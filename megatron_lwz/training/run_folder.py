"""The run folder: the place of everything a run writes, and the decision whether the run starts or resumes."""

from __future__ import annotations

import json
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path

from megatron_lwz.config import Config, Stage, save_config, unread_note
from megatron_lwz.distributed import exchange, groups, launch
from megatron_lwz.errors import ConfigError
from megatron_lwz.file_lock import FileLock, LockHeld, holder_of, lock_of
from megatron_lwz.mounts import local_locks
from megatron_lwz.run_paths import RunPaths, step_of
from megatron_lwz.training.attempts import append_attempt
from megatron_lwz.training.checkpoint import latest
from megatron_lwz.training.last_start import LastStart

log = logging.getLogger(__name__)

_LEFT_SECONDS = 15.0
"""How long a start waits for the rollout process of a trainer that was killed. The system ends it with the trainer."""


class RunFolder(RunPaths):
    """The folder of a run that trains. This process alone writes to it, until `launch.shutdown` or its own end.

    `resume` is the checkpoint from which the run continues, None for a fresh start. `finished`: nothing is left to do.
    A start that ends before `begin` leaves the folder as it found it; of a folder that it made, nothing.
    """

    def __init__(self, config: Config, stage: Stage) -> None:
        """Locks the folder and decides about resuming. Changes no file of the run: that begins with `begin`. Collective.

        `run.resume`: `auto` resumes from the newest checkpoint if there is one, `must` fails without one, `never`
        refuses a folder that a run already wrote to. Refuses the folder of another stage, and changed settings that a
        run keeps (config/kept.py). Raises LwzError, on every rank alike.
        """
        super().__init__(config.run.dir)
        self._config, self._stage = config, stage
        self._held: _Held | None = None
        self._last: LastStart | None = None
        try:
            exchange.from_rank_zero(self._take)
            name, self.finished = exchange.from_rank_zero(self._look)
        except BaseException:
            if self._held is not None:
                self._held.release()
            raise
        self.resume = self.checkpoints / name if name is not None else None
        if self.finished and groups.is_rank_zero():
            given = (config.sft.epochs, config.reward_model.epochs, config.dpo.epochs)
            epochs = ", or the epochs that set it," if any(given) else ""
            asked = f"raise training.steps ({config.training.steps}){epochs} to go on"
            log.info("%s: already finished at step %d: %s", self.root, step_of(str(name)), asked)

    def begin(self, step: int) -> int:
        """Writes the resolved `config.yaml`, logs this start at `step` finished updates, and returns its number.

        Removes the summary that marks a finished run. Collective. Call it once all that the run needs is read and
        checked.
        """
        return int(exchange.from_rank_zero(lambda: self._write(step)))

    def _take(self) -> None:
        key, given = "run.dir", str(self.root)
        try:
            self._held = held = _Held(self)
        except LockHeld as error:
            advice = f"{error.holder} writes this run: {error.advice}, or choose another folder"
            raise ConfigError(key, given, advice) from error
        except OSError as error:
            raise ConfigError(key, given, f"cannot be a run folder ({error.strerror}): choose another one") from error
        launch.at_shutdown(held.release)
        shutil.rmtree(self.new_corpus, ignore_errors=True)  # of a start that was killed
        if kind := local_locks(self.root):
            text = "%s: this mount (%s) keeps locks to one host: start the run on no other host meanwhile"
            log.warning(text, self.root, kind)
        if holder := _still_writing(self.journal):
            advice = f"{holder} still writes {self.journal.name}, though its trainer is gone: end it, or wait for it"
            raise ConfigError(key, given, advice)

    def _look(self) -> tuple[str | None, bool]:
        """Returns the name of the checkpoint to resume from, and whether the run is finished."""
        found, resume = latest(self.root), self._config.run.resume
        if resume == "must" and found is None:
            raise ConfigError("run.resume", "must", f"no checkpoint under {self.checkpoints}: start with resume: auto")
        used = [path for path in (self.metrics, self.journal, self.latest) if path.exists()]
        if resume == "never" and used:
            raise ConfigError("run.resume", "never", f"{used[0]} exists: choose another run.dir or resume: auto")
        self._last = last = LastStart(self, self._config)
        if used:
            last.check_stage(self._stage)
        if found is not None or self.journal.exists():
            last.check_kept(self._stage)
        for change in last.changes:
            log.info("changed since the last start: %s", change)
        return (None, False) if found is None else (found.name, self._is_finished(found))

    def _is_finished(self, newest: Path) -> bool:
        """Whether the run has taken all steps, and has written its summary afterwards: a stage writes that last."""
        try:
            step, summary = step_of(newest.name), json.loads(self.summary.read_text(encoding="utf-8"))
            return step >= self._config.training.steps and summary["steps"] >= step
        except (OSError, ValueError, LookupError, TypeError):  # killed before the end, or another file of this name
            return False

    def _write(self, step: int) -> int:
        assert self._last is not None and self._held is not None
        about = {
            "stage": self._stage,
            "tokenizer": self._last.tokenizer,
            "changed": {change.key: [change.old, change.new] for change in self._last.changes},
        }
        self._held.begun = True
        self.checkpoints.mkdir(exist_ok=True)
        if self.new_corpus.exists():
            shutil.rmtree(self.corpus, ignore_errors=True)
            self.new_corpus.rename(self.corpus)
        if (note := unread_note(self._config, self._stage)) is not None:
            log.warning("%s", note)
        number = append_attempt(self.attempts, step, about)
        save_config(self._config, self.config)
        self.summary.unlink(missing_ok=True)
        return number


class _Held:
    """The lock of a run folder, which is made if it does not exist. Raises LockHeld, FileSystemError or OSError."""

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        self._made: list[Path] = []
        self._released = False
        self.begun = False
        """Whether the run has written to its folder."""
        try:
            self._lock = self._locked(tries=10)
        except BaseException:
            self._remove_folders()
            raise

    def release(self) -> None:
        """Releases the lock. What a start left that has not begun is removed."""
        if self._released:
            return
        self._released = True
        if self.begun:
            self._lock.release()
            return
        shutil.rmtree(self._run.new_corpus, ignore_errors=True)
        alone = list(self._run.root.glob("*")) == [self._run.lock]
        self._lock.release(remove=self._lock.created or alone)
        self._remove_folders()

    def _locked(self, tries: int) -> FileLock:
        root = self._run.root
        self._made += [path for path in (root, *root.parents) if not path.exists() and path not in self._made]
        root.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(self._run.lock)
        except FileNotFoundError:  # a start that failed meanwhile has removed the folder again
            if tries == 1:
                raise
            return self._locked(tries - 1)

    def _remove_folders(self) -> None:
        for path in self._made:
            with suppress(OSError):  # something else lies in it by now: a log, or another start's lock
                path.rmdir()


def _still_writing(journal: Path) -> str | None:
    """Returns who writes the journal, None if nobody does any more.

    Called with the run's lock held. So a holder is the rollout process of a killed trainer, and it is about to end.
    """
    end = time.monotonic() + _LEFT_SECONDS
    while (holder := holder_of(lock_of(journal))) is not None and time.monotonic() < end:
        time.sleep(0.1)
    return holder


def due(step: int, interval: int, config: Config) -> bool:
    """Whether an action that runs every `interval` steps (0: never) and after the last step is due after `step`."""
    return step == config.training.steps or (interval > 0 and step % interval == 0)
