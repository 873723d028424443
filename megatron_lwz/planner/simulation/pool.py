"""All engines of a run: which stream gets a slot on which engine, and what happens when an engine fails.

The choice is that of `rollout/slots.py`: the engine of the group while it has room, otherwise the emptiest one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from megatron_lwz.planner.simulation.clock import Clock
from megatron_lwz.planner.simulation.engine import Decoding, Engine, Stream

RETRY_SECONDS = 0.25
"""What a rollout waits after its engine has failed before it asks for another slot (`rollout/writer.py`)."""


@dataclass(frozen=True)
class Failures:
    """How often an engine ends, and how long it takes until it is back with the current weights."""

    between: float
    """Mean seconds between two failures of one engine, exponentially distributed."""
    repair: float
    """Seconds."""


@dataclass(frozen=True)
class Engines:
    """The engines of a run."""

    count: int
    slots: int
    """Rollouts that one engine writes at once."""
    decoding: Decoding
    prefill: float | None = None
    """Tokens of a prefix that an engine reads per second. None: that takes no time."""
    failures: Failures | None = None


class Pool:
    """The engines at work, and the streams that wait for a slot, in order."""

    def __init__(self, clock: Clock, engines: Engines, seed: int, ended: Callable[[Stream], None]) -> None:
        slots, decoding = engines.slots, engines.decoding
        self.engines = [Engine(clock, decoding, slots, self._end) for _ in range(engines.count)]
        self.failed = self.moved = 0
        """Failures, and streams that went on after one."""
        self.moved_tokens = 0.0
        """Tokens that moved streams had already: they are read again, and not written again."""
        self._clock, self._ended = clock, ended
        self._prefill, self._failures = engines.prefill, engines.failures
        self._noise = np.random.default_rng([seed, 1])
        self._waiting: deque[Stream] = deque()
        self._homes: dict[int, Engine] = {}
        for engine in self.engines if engines.failures else ():
            self._plan_failure(engine)

    def write(self, stream: Stream) -> None:
        """Begins the stream, or lets it wait for a slot. `ended` is called when it is written."""
        self._waiting.append(stream)
        self._serve()

    def pause(self) -> None:
        """Holds all engines while they get weights."""
        for engine in self.engines:
            engine.pause()

    def resume(self) -> None:
        """Lets all engines go on."""
        for engine in self.engines:
            engine.resume()

    def tokens(self) -> float:
        """Returns the tokens written so far."""
        for engine in self.engines:
            engine.settle()
        return sum(engine.tokens for engine in self.engines)

    def _serve(self) -> None:
        while self._waiting and (engine := self._choose(self._waiting[0].group)) is not None:
            stream = self._waiting.popleft()
            engine.begin(stream, self._reading(stream))

    def _reading(self, stream: Stream) -> float:
        prefix = stream.prompt + stream.length - stream.left
        return prefix / self._prefill if self._prefill else 0.0

    def _choose(self, group: int) -> Engine | None:
        free = [engine for engine in self.engines if engine.up and engine.in_use < engine.slots]
        if not free:
            return None
        home = self._homes.get(group)
        best = min(free, key=lambda engine: (engine is not home, engine.in_use))
        self._homes.setdefault(group, best)
        return best

    def _end(self, stream: Stream) -> None:
        self._ended(stream)
        self._serve()

    def _plan_failure(self, engine: Engine) -> None:
        assert self._failures is not None
        self._clock.after(self._noise.exponential(self._failures.between), lambda: self._fail(engine))

    def _fail(self, engine: Engine) -> None:
        """Ends the engine. Its rollouts go on from their last token, on another engine if one is up."""
        assert self._failures is not None
        self.failed += 1
        for stream in engine.fail():
            self.moved += 1
            self.moved_tokens += stream.length - stream.left
            self._clock.after(RETRY_SECONDS, partial(self.write, stream))
        self._clock.after(self._failures.repair, lambda: self._repair(engine))

    def _repair(self, engine: Engine) -> None:
        engine.up = True
        self._plan_failure(engine)
        self._serve()
