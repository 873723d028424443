"""Ends a run in time and with a checkpoint: before `run.must_save_by`, or after the step during which SIGUSR1 came."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.config.moment import seconds_until
from megatron_lwz.distributed import environment, exchange, termination
from megatron_lwz.errors import ConfigError, Resumable

FIRST_SAVE_SECONDS = 60.0
"""Estimate of the time that a save takes, until one was measured."""
_SIGNAL, _TIME = 1.0, 2.0


class Deadline:
    """Decides after every step whether the run saves and ends now. All ranks make the same calls.

    The run ends if another step and two times the longest save so far might not be done before the deadline. The clock of
    the system is read once, so later jumps of it change nothing.
    """

    def __init__(self, config: Config) -> None:
        """Raises ConfigError for a deadline that is over, or that nobody knows."""
        self._config, self._given = config, config.run.must_save_by
        self._end = math.inf
        if self._given is not None:
            left = seconds_until(self._given, now=time.time(), job_end=environment.get("SLURM_JOB_END_TIME"))
            if left is None:
                raise ConfigError(
                    "run.must_save_by", self._given, "SLURM_JOB_END_TIME is not set: give a duration or a date"
                )
            if left <= 0:
                raise ConfigError(
                    "run.must_save_by", self._given, "is over already: give a later one, or null for none"
                )
            self._end = time.monotonic() + left
        self._reason = 0.0
        self._longest = 0.0
        self._mark = math.nan

    @property
    def passed(self) -> bool:
        """Whether the run has ended before its last step."""
        return self._reason > 0

    def steps(self, done: int) -> Iterator[int]:
        """Yields the numbers of the steps after `done`, to the last one or to the one after which the run ends early."""
        self._mark = time.monotonic()
        for step in range(done + 1, self._config.training.steps + 1):
            yield step
            if self.passed:
                return

    def reached(self, step: int, longest_save: float | None) -> bool:
        """Whether the run must save now, after `step`, and end. Never after the last step. Collective.

        `longest_save`: seconds that the longest save so far took, from its start until it was complete.
        """
        now = time.monotonic()
        self._longest, self._mark = max(self._longest, now - self._mark), now
        if step == self._config.training.steps:
            return False
        saving = max(FIRST_SAVE_SECONDS, self._longest) if longest_save is None else longest_save
        late = now + self._longest + 2 * saving >= self._end
        self._reason = exchange.largest(_TIME if late else _SIGNAL if termination.save_requested() else 0.0)
        return self.passed

    def check(self, root: Path, step: int) -> None:
        """Raises Resumable if `reached` was true, once the checkpoint of `step` is complete and all else is closed."""
        if self.passed:
            why = f"run.must_save_by = {self._given}" if self._reason == _TIME else "SIGUSR1"
            raise Resumable(
                f"{root}: saved and stopped after step {step} of {self._config.training.steps} ({why}): "
                "the same command goes on"
            )
