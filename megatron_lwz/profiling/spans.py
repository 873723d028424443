"""Spans: what a process did from when to when, on the clock that all processes of a machine share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

STEPS, PHASES, SYNC = "steps", "phases", "weight sync"
"""Tracks of a trainer's rank."""
ENGINE, REWARD = "engine ", "reward "
"""Beginnings of the names of tracks: an engine's address, a component's name follows."""


@dataclass(frozen=True)
class Span:
    """`begin` and `end` are nanoseconds of the monotonic clock. Names and facts hold ids and numbers, never a text."""

    track: str
    name: str
    begin: int
    end: int
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.begin) / 1e9


@dataclass(frozen=True)
class Window:
    """What is recorded: the steps from `first` to `last`, both included, and the operators of these ranks."""

    first: int
    last: int
    ranks: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __contains__(self, step: int) -> bool:
        return self.first <= step <= self.last


class Recorder:
    """Collects the spans of a process, from any thread, while it is on.

    >>> spans = Recorder()
    >>> spans.record(True)
    []
    >>> with spans.span(PHASES, "update", tokens=8):
    ...     pass
    >>> [(span.name, span.facts) for span in spans.record(False)]
    [('update', {'tokens': 8})]
    """

    def __init__(self) -> None:
        self._on = False
        self._lock = threading.Lock()
        self._done: list[Span] = []
        self._begun: dict[object, tuple[str, str, int, dict[str, float]]] = {}

    @contextmanager
    def span(self, track: str, name: str, **facts: float) -> Iterator[dict[str, float]]:
        """Records the block, which may add to the facts. Outside the time of recording it costs two looks at a clock."""
        key, begin = object(), time.monotonic_ns()
        with self._lock:
            self._begun[key] = (track, name, begin, facts)
        try:
            yield facts
        finally:
            with self._lock:
                del self._begun[key]
                if self._on:
                    self._done.append(Span(track, name, begin, time.monotonic_ns(), facts))

    def record(self, on: bool) -> list[Span]:
        """Turns recording on or off. Returns what was recorded until now.

        A span belongs to it that ended while recording was on, or has not ended yet: `unfinished`, up to now.
        """
        now = time.monotonic_ns()
        with self._lock:
            found = self._done
            if self._on and not on:
                open_ones = [(track, name, begin, dict(facts)) for track, name, begin, facts in self._begun.values()]
                found += [
                    Span(track, name, begin, now, facts | {"unfinished": 1}) for track, name, begin, facts in open_ones
                ]
            self._on, self._done = on, []
        return found
