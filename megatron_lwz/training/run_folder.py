"""The run folder: the place of everything a run writes, and the decision whether the run starts or resumes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from megatron_lwz.config import Config, save_config
from megatron_lwz.distributed import exchange, groups, launch
from megatron_lwz.errors import ConfigError
from megatron_lwz.file_lock import FileLock, LockHeld
from megatron_lwz.run_paths import RunPaths, step_of
from megatron_lwz.training.checkpoint import latest

log = logging.getLogger(__name__)


class RunFolder(RunPaths):
    """The folder of a run that trains. This process alone writes to it, until `launch.shutdown` or its own end.

    `resume` is the checkpoint from which the run continues, None for a fresh start. `finished`: nothing is left to do.
    """

    def __init__(self, config: Config) -> None:
        """Locks the folder and decides about resuming. Changes no file of the run: that begins with `begin`. Collective.

        `run.resume`: `auto` resumes from the newest checkpoint if there is one, `must` fails without one, `never`
        refuses a folder that a run already wrote to. Raises LwzError, on every rank alike.
        """
        super().__init__(config.run.dir)
        self._config = config
        exchange.from_rank_zero(self._lock)
        name, self.finished = exchange.from_rank_zero(self._look)
        self.resume = self.checkpoints / name if name is not None else None
        if self.finished and groups.is_rank_zero():
            epochs = ", or the epochs that set it," if config.sft.epochs or config.reward_model.epochs else ""
            asked = f"raise training.steps ({config.training.steps}){epochs} to go on"
            log.info("%s: already finished at step %d: %s", self.root, step_of(str(name)), asked)

    def begin(self) -> None:
        """Writes the resolved `config.yaml`, and removes the summary that marks a finished run. Collective.

        Call it once all that the run needs is read and checked.
        """
        exchange.from_rank_zero(self._write)

    def _lock(self) -> None:
        key, given = "run.dir", str(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.lock)
        except LockHeld as held:
            advice = f"{held.holder} writes this run: wait for it or end it, or choose another folder"
            raise ConfigError(key, given, advice) from held
        except OSError as error:
            raise ConfigError(key, given, f"cannot be a run folder ({error.strerror}): choose another one") from error
        launch.at_shutdown(lock.release)

    def _look(self) -> tuple[str | None, bool]:
        """Returns the name of the checkpoint to resume from, and whether the run is finished."""
        found, resume = latest(self.root), self._config.run.resume
        if resume == "must" and found is None:
            raise ConfigError("run.resume", "must", f"no checkpoint under {self.checkpoints}: start with resume: auto")
        used = [path for path in (self.metrics, self.journal, self.latest) if path.exists()]
        if resume == "never" and used:
            raise ConfigError("run.resume", "never", f"{used[0]} exists: choose another run.dir or resume: auto")
        return (None, False) if found is None else (found.name, self._is_finished(found))

    def _is_finished(self, newest: Path) -> bool:
        """Whether the run has taken all steps, and has written its summary afterwards: a stage writes that last."""
        try:
            step, summary = step_of(newest.name), json.loads(self.summary.read_text(encoding="utf-8"))
            return step >= self._config.training.steps and summary["steps"] >= step
        except (OSError, ValueError, LookupError, TypeError):  # killed before the end, or another file of this name
            return False

    def _write(self) -> None:
        self.checkpoints.mkdir(exist_ok=True)
        save_config(self._config, self.config)
        self.summary.unlink(missing_ok=True)


def due(step: int, interval: int, config: Config) -> bool:
    """Whether an action that runs every `interval` steps (0: never) and after the last step is due after `step`."""
    return step == config.training.steps or (interval > 0 and step % interval == 0)
