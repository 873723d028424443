"""An engine that writes rollouts: its streams share the decode steps."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from megatron_lwz.planner.simulation.clock import Clock


@dataclass(frozen=True)
class Decoding:
    """How long a decode step takes, which gives every stream of the engine one token: base + streams · per_stream.

    Weights are read once per step, keys and values once per stream.
    """

    base: float
    """Seconds."""
    per_stream: float = 0.0
    """Seconds."""

    def step_seconds(self, streams: int) -> float:
        """Returns the seconds of a decode step."""
        return self.base + streams * self.per_stream


@dataclass(eq=False)
class Stream:
    """A rollout that is being written."""

    group: int
    prompt: int
    """Tokens of the prompt."""
    length: int
    """Tokens that the response will have."""
    left: float
    """Tokens still to be written when the stream last joined or left an engine."""


class Engine:
    """One engine. `_position` counts its decode steps since the beginning.

    A stream that joins at position p with n tokens left ends at position p + n, whoever joins or leaves meanwhile. So
    only the next end has to be planned, and planned again when the number of streams changes.
    """

    def __init__(self, clock: Clock, decoding: Decoding, slots: int, ended: Callable[[Stream], None]) -> None:
        self.up = True
        self.slots = slots
        self.in_use = 0
        self.tokens = 0.0
        """Tokens written so far."""
        self.busy_seconds = 0.0
        """Seconds in which it wrote."""
        self.stream_seconds = 0.0
        """The same, times its streams."""
        self._clock, self._decoding, self._ended = clock, decoding, ended
        self._position = 0.0
        self._since = 0.0
        self._paused = False
        self._streams: list[tuple[float, int, Stream]] = []
        """A heap: position of the end, a number that makes the order definite, stream."""
        self._reading: dict[Stream, None] = {}
        """Streams whose prefix is being read: they have a slot, and write nothing yet."""
        self._number = count()
        self._plan = self._life = 0

    def begin(self, stream: Stream, reading: float) -> None:
        """Gives the stream a slot. It writes after `reading` seconds, in which its prefix is read."""
        self.in_use += 1
        self._reading[stream] = None
        life = self._life
        if reading:
            self._clock.after(reading, lambda: self._join(stream, life))
        else:
            self._join(stream, life)

    def pause(self) -> None:
        """Holds all streams between two tokens."""
        self.settle()
        self._paused = True
        self._replan()

    def resume(self) -> None:
        """Goes on with the same streams."""
        self.settle()
        self._paused = False
        self._replan()

    def fail(self) -> list[Stream]:
        """Ends the engine. Returns its streams, with the tokens that each has left."""
        self.settle()
        for end, _, stream in self._streams:
            stream.left = max(0.0, end - self._position)
        lost = [stream for _, _, stream in sorted(self._streams, key=lambda entry: entry[1])]
        lost += self._reading
        self._streams, self._reading, self.in_use, self.up = [], {}, 0, False
        self._life += 1
        self._replan()
        return lost

    def settle(self) -> None:
        """Counts what was written since the last change."""
        seconds, streams = self._clock.now - self._since, len(self._streams)
        self._since = self._clock.now
        if streams and not self._paused:
            steps = seconds / self._decoding.step_seconds(streams)
            self._position += steps
            self.tokens += steps * streams
            self.busy_seconds += seconds
            self.stream_seconds += seconds * streams

    def _join(self, stream: Stream, life: int) -> None:
        if life != self._life:
            return  # the engine failed meanwhile
        del self._reading[stream]
        self.settle()
        heapq.heappush(self._streams, (self._position + stream.left, next(self._number), stream))
        self._replan()

    def _replan(self) -> None:
        """Plans the next end of a stream, in place of what was planned before."""
        self._plan += 1
        if self._streams and not self._paused:
            plan, steps = self._plan, self._streams[0][0] - self._position
            seconds = max(0.0, steps) * self._decoding.step_seconds(len(self._streams))
            self._clock.after(seconds, lambda: self._end(plan))

    def _end(self, plan: int) -> None:
        if plan != self._plan:
            return
        self.settle()
        end, _, stream = heapq.heappop(self._streams)
        self._position = end  # exactly: rounding must not add up
        self._replan()
        self.in_use -= 1
        self._ended(stream)
