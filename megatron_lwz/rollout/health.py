"""Whether an engine may be given rollouts: a state machine without a clock, fed by requests and probes."""

from __future__ import annotations

from enum import Enum

from megatron_lwz.config.pool import PoolSection
from megatron_lwz.http.retry import Failure

AWAY = frozenset({Failure.CONNECTION, Failure.TIMEOUT})
"""Failures of an engine that is not there; any other is an answer."""
LONGEST_REST = 12
"""Answered probes that an engine which fails again and again stays out for, at most."""


class Standing(str, Enum):
    """Where an engine stands."""

    UP = "up"
    """Takes rollouts."""
    DOUBTED = "doubted"
    """A request failed, or a probe was missed: nothing new until it answers and is known to have the weights."""
    OUT = "out"
    """Does not answer, fails all that it is given, or lacks the weights."""


class Health:
    """One engine's. An engine that the run was started with is up until something fails, a new one is out."""

    def __init__(self, section: PoolSection, *, up: bool = True) -> None:
        self.standing = Standing.UP if up else Standing.OUT
        self.failures = 0
        """Requests that failed in a row."""
        self._section = section
        self._missed = 0
        self._outings = 0
        self._rest = 0

    def request_done(self) -> None:
        """A rollout came to its end."""
        self.failures = self._outings = 0

    def request_failed(self, kind: Failure) -> None:
        """A refused request says nothing about the engine."""
        if kind is Failure.REFUSED:
            return
        self.failures += 1
        if self.standing is Standing.UP:
            self.standing = Standing.DOUBTED

    def probe_failed(self, kind: Failure) -> bool:
        """Whether the engine is out by this: slow ones are doubted for some probes first."""
        if self.standing is Standing.OUT:
            return False
        self._missed += 1
        if kind is Failure.TIMEOUT and self._missed < self._section.missed_probes:
            self.standing = Standing.DOUBTED
            return False
        self.take_out()
        return True

    def probe_answered(self) -> bool:
        """Whether the engine may go on, or come back, if it has the weights.

        One that was taken out again before it finished a rollout rests for 1, 3, 7 … answered probes.
        """
        self._missed = 0
        if self.standing is Standing.DOUBTED and self.failures >= self._section.failed_requests:
            self.take_out()
        if self.standing is not Standing.OUT:
            return True
        self._rest -= 1
        return self._rest < 0

    def take_out(self) -> None:
        """Nothing new, until `back`."""
        self.standing = Standing.OUT
        self._rest = min(2**self._outings - 1, LONGEST_REST)
        self._outings += 1
        self._missed = 0

    def lack_weights(self) -> None:
        """Out, but only until it has loaded them."""
        self.standing = Standing.OUT

    def rested(self) -> None:
        """It was given the weights while it was out: it may come back by its next answer."""
        self._rest = 0

    def back(self) -> bool:
        """It answers and has the weights; whether it was out."""
        was_out = self.standing is Standing.OUT
        self.standing = Standing.UP
        if was_out:
            self.failures = 0
        return was_out
