"""Ends a run in time and with a checkpoint: before `run.must_save_by`, or after SIGUSR1.

It is looked at after every step, and while rank 0 waits for the rollouts of a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.config.moment import seconds_until
from megatron_lwz.distributed import environment, exchange, termination
from megatron_lwz.errors import ConfigError, Interrupted, Resumable
from megatron_lwz.orchestrator.protocol import Waiting
from megatron_lwz.rollout.progress import Progress

FIRST_SAVE_SECONDS = 60.0
"""Estimate of the time that a save takes, until one was measured."""
_SIGNAL, _TIME = 1.0, 2.0


class Deadline:
    """Decides after every step, and while it waits for rollouts, whether the run saves and ends now.

    The run ends after a step if another step and two times the longest save so far might not be done before the deadline. It
    ends while it waits if two times the longest save might not. The clock of the system is read once, so later jumps of
    it change nothing.
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
        self._saving = 0.0
        """Seconds that a save may take now: 0 before the first step, since there is nothing new to save."""
        self._key = ""
        """What ranks post that have got the signal, while a step waits for rollouts; empty otherwise."""

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
        self._saving = 2 * (max(FIRST_SAVE_SECONDS, self._longest) if longest_save is None else longest_save)
        if step == self._config.training.steps:
            return False
        late = now + self._longest + self._saving >= self._end
        self._reason = exchange.largest(_TIME if late else _SIGNAL if termination.save_requested() else 0.0)
        return self.passed

    def interrupting(self, waiting: Waiting) -> Waiting:
        """Returns `waiting`, which raises Interrupted from then on when the run must not wait longer. For rank 0."""

        def wait(progress: Progress) -> None:
            waiting(progress)
            if self._key and self._due():
                raise Interrupted("the run must save and end")

        return wait

    def begin_wait(self, key: str) -> None:
        """Begins the wait of a step for rollouts. `key` is the step's own, the same on every rank."""
        self._key = f"{key}/save"

    def meanwhile(self) -> None:
        """Tells rank 0 of a signal that has come. Called by a rank that waits for it."""
        if termination.save_requested() and not exchange.posted(self._key):
            exchange.post(self._key)

    def end_wait(self, *, interrupted: bool) -> bool:
        """Ends the wait on all ranks, with what rank 0 says. Returns whether the run ends without the step. Collective."""
        reason = self._due() if interrupted else 0.0
        self._key = ""
        self._reason = float(exchange.broadcast_json(reason))
        return self.passed

    def _due(self) -> float:
        """Returns why rank 0 must not wait longer for rollouts, 0 if it may."""
        if time.monotonic() + self._saving >= self._end:
            return _TIME
        return _SIGNAL if termination.save_requested() or exchange.posted(self._key) else 0.0

    def check(self, root: Path, step: int) -> None:
        """Raises Resumable if the run ends early, once the checkpoint of `step` is complete and all else is closed."""
        if self.passed:
            why = f"run.must_save_by = {self._given}" if self._reason == _TIME else "SIGUSR1"
            done = f"saved and stopped after step {step}" if step else "stopped with its rollouts kept, before step 1"
            raise Resumable(f"{root}: {done} of {self._config.training.steps} ({why}): the same command goes on")
