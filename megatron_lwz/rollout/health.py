"""Decides whether an engine may get rollouts: a state machine without a clock, driven by requests and probes."""

from __future__ import annotations

from enum import Enum

from megatron_lwz.config.pool import PoolSection
from megatron_lwz.http.retry import Failure

AWAY = frozenset({Failure.CONNECTION, Failure.TIMEOUT})
"""Failures that mean that the engine is unreachable. Any other failure is an answer of the engine."""
LONGEST_REST = 12
"""Maximum number of answered probes that an engine stays out for after repeated failures."""


class Standing(str, Enum):
    """State of an engine."""

    UP = "up"
    """The engine takes rollouts."""
    DOUBTED = "doubted"
    """A request failed or a probe was missed. The engine gets no new rollouts until it answers and is known to have
    the weights.
    """
    OUT = "out"
    """The engine does not answer, fails every request, or lacks the weights."""


class Health:
    """Health of one engine.

    An engine that was given at the start of the run is up until something fails; a new one is out.
    """

    def __init__(self, section: PoolSection, *, up: bool = True) -> None:
        self.standing = Standing.UP if up else Standing.OUT
        self.failures = 0
        """Number of consecutive failed requests."""
        self._section = section
        self._missed = 0
        self._outings = 0
        self._rest = 0

    def request_done(self) -> None:
        """Records that a request ended well."""
        self.failures = self._outings = 0

    def request_failed(self, kind: Failure) -> None:
        """Records a failed request. A refused request says nothing about the engine and is ignored."""
        if kind is Failure.REFUSED:
            return
        self.failures += 1
        if self.standing is Standing.UP:
            self.standing = Standing.DOUBTED

    def probe_failed(self, kind: Failure) -> bool:
        """Records a missed probe. Returns whether the engine is now out.

        After a timeout the engine is only doubted, until it has missed `missed_probes` probes in a row.
        """
        self._missed += 1
        if self.standing is Standing.OUT:
            return False
        if kind is Failure.TIMEOUT and self._missed < self._section.missed_probes:
            self.standing = Standing.DOUBTED
            return False
        self.take_out()
        return True

    @property
    def stuck(self) -> bool:
        """Whether the engine is out and has missed as many probes again as it took to get there."""
        return self.standing is Standing.OUT and self._missed >= self._section.missed_probes

    def probe_answered(self) -> bool:
        """Records an answered probe. Returns whether the engine may continue, or return, if it has the weights.

        An engine that was taken out again before it finished a rollout rests for 1, 3, 7 … answered probes.
        """
        self._missed = 0
        if self.standing is Standing.DOUBTED and self.failures >= self._section.failed_requests:
            self.take_out()
        if self.standing is not Standing.OUT:
            return True
        self._rest -= 1
        return self._rest < 0

    def take_out(self) -> None:
        """Takes the engine out: it gets no new rollouts until `back`."""
        self.standing = Standing.OUT
        self._rest = min(2**self._outings - 1, LONGEST_REST)
        self._outings += 1
        self._missed = 0

    def lack_weights(self) -> None:
        """Takes the engine out only until it has loaded the weights."""
        self.standing = Standing.OUT

    def rested(self) -> None:
        """Records that the engine was given the weights while it was out. It may return at its next answer."""
        self._rest = 0

    def back(self) -> bool:
        """Records that the engine answers and has the weights. Returns whether it was out."""
        was_out = self.standing is Standing.OUT
        self.standing = Standing.UP
        if was_out:
            self.failures = 0
        return was_out
