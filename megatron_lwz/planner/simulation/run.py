"""The simulated run: the trainer's loop of `training/grpo.py` and the controller of `rollout/controller.py`, as events.

Which groups begin and which ones a step takes is decided by the run's own `Admission`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from megatron_lwz.planner.simulation.clock import Clock
from megatron_lwz.planner.simulation.engine import Stream
from megatron_lwz.planner.simulation.lengths import GroupTokens, Lengths
from megatron_lwz.planner.simulation.pool import Pool
from megatron_lwz.planner.simulation.setting import Setting
from megatron_lwz.rollout.admission import Admission, State

WAIT = None
"""What the trainer yields when it waits for a group; otherwise it yields the seconds in which it computes."""


@dataclass(frozen=True)
class Step:
    """One training step. Seconds are those of `metrics.jsonl`: rollout, logprobs and update, weight_sync."""

    groups: tuple[int, ...]
    """Numbers of the groups that it trained on, in its order."""
    admitted: tuple[int, ...]
    """The steps that admitted them."""
    tokens: int
    """Of their responses."""
    waited: float
    trained: float
    synced: float
    waiting: int
    """Admitted groups that were not ready when the batch was complete."""
    unused_tokens: float
    """Tokens written and not trained on when the engines got the step's weights: each is one step staler from then on."""

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.waited + self.trained + self.synced


@dataclass
class Record:
    """What happened in a run."""

    steps: list[Step] = field(default_factory=list)
    admitted: dict[int, GroupTokens] = field(default_factory=dict)
    """All groups that began, by number."""
    replaced: list[int] = field(default_factory=list)
    """Groups without variance that gave their slot to another one. No step trained on them."""
    seconds: float = 0.0
    busy_seconds: float = 0.0
    """In which an engine wrote, over all engines."""
    stream_seconds: float = 0.0
    """The same, times the streams of the engine."""
    written: float = 0.0
    """Tokens that engines wrote."""
    failures: int = 0
    moved: int = 0
    moved_tokens: float = 0.0


class Simulation:
    """One run, for one call of `run`."""

    def __init__(self, setting: Setting, lengths: Lengths) -> None:
        self._setting, self._lengths = setting, lengths
        self._clock = Clock()
        self._pool = Pool(self._clock, setting.engines, setting.seed, self._written)
        self._admission = Admission(
            batch=setting.batch,
            staleness=setting.staleness,
            last_step=setting.steps,
            carried=setting.over_sampling,
            refills=setting.refills,
        )
        self._record = Record()
        self._unwritten: dict[int, int] = {}
        """Group → responses that are not written yet."""
        self._used = 0
        """Response tokens that were trained on, or dropped."""
        self._trainer = self._train()
        self._trainer_waits = False

    def run(self) -> Record:
        """Returns what happened until the last step was trained."""
        self._go_on()
        self._clock.run()
        found, pool = self._record, self._pool
        found.written, found.seconds = pool.tokens(), self._clock.now
        found.busy_seconds = sum(engine.busy_seconds for engine in pool.engines)
        found.stream_seconds = sum(engine.stream_seconds for engine in pool.engines)
        found.failures, found.moved, found.moved_tokens = pool.failed, pool.moved, pool.moved_tokens
        return found

    def _train(self) -> Iterator[float | None]:
        """The trainer's loop. Training may begin on a part of the batch (`training.accumulate_groups`)."""
        setting, clock = self._setting, self._clock
        for step in range(1, setting.steps + 1):
            began, trained, batch = clock.now, setting.trainer.fixed, list[int]()
            self._begin(step)
            while len(batch) < setting.batch:
                part = self._next_part(batch)
                if not part:
                    yield WAIT
                    continue
                batch += part
                waiting = sum(state is not State.READY for state in self._admission.states.values())
                seconds = setting.trainer.per_token * self._trained_tokens(part)
                trained += seconds
                yield seconds
            yield setting.trainer.fixed
            waited = max(0.0, clock.now - began - trained)  # a sum of parts may be rounded
            admitted = tuple(self._admission.admitted[group] for group in batch)
            self._admission.trained(batch)
            tokens = sum(self._record.admitted[group].response_tokens for group in batch)
            self._used += tokens

            yield setting.sync.export
            self._pool.pause()
            unused = self._pool.tokens() - self._used
            yield setting.sync.load
            self._pool.resume()
            synced = setting.sync.seconds
            self._record.steps.append(
                Step(tuple(batch), admitted, tokens, waited, trained, synced, waiting, max(0.0, unused))
            )

    def _begin(self, step: int) -> None:
        self._admission.advance(step)
        self._refill()

    def _refill(self) -> None:
        """Admits groups for all free slots."""
        for _ in range(self._admission.slots()):
            number = len(self._record.admitted)
            group = self._record.admitted[number] = self._lengths.group(number)
            self._admission.admit(number)
            self._unwritten[number] = len(group.responses)
            for length in group.responses:
                self._pool.write(Stream(number, group.prompt, length, length))

    def _written(self, stream: Stream) -> None:
        """A response is at its end. The last one of a group lets its scores be completed."""
        self._unwritten[stream.group] -= 1
        if not self._unwritten[stream.group]:
            self._clock.after(self._setting.rewards, lambda: self._complete(stream.group))

    def _complete(self, number: int) -> None:
        """A group has all its scores. It is ready, or another one takes its place."""
        group = self._record.admitted[number]
        if group.barren and self._admission.filter(number):
            self._record.replaced.append(number)
            self._used += group.response_tokens
            self._refill()
            return
        self._admission.finish(number)
        if self._trainer_waits:
            self._go_on()

    def _next_part(self, given: Sequence[int]) -> list[int]:
        """Returns the groups to train on now; [] while there are too few."""
        taken = self._admission.take()
        least = self._setting.accumulate or self._setting.batch
        part = [group for group in taken or self._admission.certain() if group not in given]
        return [] if taken is None and len(part) < least else part

    def _trained_tokens(self, groups: Sequence[int]) -> int:
        found = [self._record.admitted[group] for group in groups]
        return sum(group.tokens for group in found if self._setting.keeps_barren or not group.barren)

    def _go_on(self) -> None:
        """Lets the trainer go on until it computes or waits."""
        seconds = next(self._trainer, math.nan)
        self._trainer_waits = seconds is WAIT
        if seconds is None:
            return
        if math.isnan(seconds):
            self._clock.stop()
        else:
            self._clock.after(seconds, self._go_on)
