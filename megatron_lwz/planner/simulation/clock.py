"""Simulated time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Clock:
    """Does what was planned, the earliest first; at equal times in the order of planning."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning of the run."""
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._stopped = False

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Plans `do` for so many seconds from now."""
        heapq.heappush(self._planned, (self.now + seconds, next(self._number), do))

    def run(self) -> None:
        """Returns when nothing is planned any more, or after `stop`."""
        while self._planned and not self._stopped:
            self.now, _, do = heapq.heappop(self._planned)
            do()

    def stop(self) -> None:
        """Ends `run`."""
        self._stopped = True
