"""Evaluation beside training: held-out prompts, written by one version of the weights while the loop goes on.

A thread takes evaluations one after the other: it has the engine serve the pinned weights, the prompts written to and scored,
and gives the metrics to the loop. All that it receives is in the run's journal, so a killed run goes on with it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from megatron_lwz.errors import LwzError
from megatron_lwz.evaluation.pinned import Pinned, PinnedEvaluations
from megatron_lwz.rollout.drafts import GroupDraft
from megatron_lwz.rollout.held_out import HeldOut
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.rollout.progress import Progress
from megatron_lwz.types import Group, Prompt, WeightVersion

POLL_SECONDS = 0.2
CLOSE_SECONDS = 15.0
"""Patience with engines of others that are loading weights; nothing that they have written is lost."""
ATTEMPTS = 2
"""Times that an evaluation beside training is begun in one process before it is left to the next start of the run."""

log = logging.getLogger(__name__)

Metrics = dict[str, float]
Measure = Callable[[Sequence[Group]], Awaitable[Metrics]]


class EvaluationEngines(Protocol):
    """What writes evaluations. Called from the evaluation's thread, but for `close`."""

    keeps_weights: bool
    """Whether training may go on meanwhile: an evaluation then has weights of its own."""

    def serve(self, version: WeightVersion, weights: Path | None) -> EnginePool:
        """A pool whose engines run these weights under this name, until the next call. Raises EngineError."""
        ...

    def close(self) -> None:
        """Stops what was started; also ends a `serve` that is waiting."""
        ...


class InLoopEvaluation:
    """Call its methods from the loop's main thread."""

    def __init__(
        self,
        run_dir: Path,
        held_out: HeldOut,
        engines: EvaluationEngines,
        measure: Measure,
        *,
        prompts: Sequence[Prompt],
        samples: int,
        most_begun: int,
    ) -> None:
        """`measure` makes metrics of an evaluation's groups. `most_begun`: see `settle`."""
        self._pinned = PinnedEvaluations(run_dir)
        self._held_out = held_out
        self._engines = engines
        self._measure = measure
        self._prompts, self._samples, self._most_begun = prompts, samples, most_begun
        self._changed = threading.Condition()
        self._waiting: deque[Pinned] = deque()
        self._running: Pinned | None = None
        self._done: deque[tuple[Pinned, Metrics]] = deque()
        self._error: BaseException | None = None
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Metrics] | None = None
        self._thread: threading.Thread | None = None

    def take_up(self, version: WeightVersion, weights: Path) -> None:
        """Begins again what an earlier process left, without waiting for it. `version` and `weights`: the run's own now.

        Evaluations of later steps are forgotten: those steps are done again. One whose weights are gone is told.
        """
        for pinned in self._pinned.begun():
            same = pinned.version.checksum == version.checksum
            if pinned.step <= version.step and self._engines.keeps_weights and pinned.weights is not None:
                self._queue(pinned)
            elif pinned.step == version.step and same:
                self._begin(version, weights)
            else:
                self._pinned.end(pinned.step)
                if pinned.step <= version.step:
                    log.warning("the evaluation after step %d cannot go on: its weights are gone", pinned.step)

    def begin(
        self, version: WeightVersion, weights: Path, *, waiting: Callable[[Progress], None] = lambda _: None
    ) -> None:
        """Has the prompts written to by `version`, exported in `weights`; returns when training may go on: see `settle`.

        Raises what ended the evaluations.
        """
        with self._changed:
            known = {pinned.step for pinned in self._unfinished()} | {pinned.step for pinned, _ in self._done}
        if version.step not in known:
            self._begin(version, weights)
        self.settle(waiting)

    def settle(self, waiting: Callable[[Progress], None] = lambda _: None) -> None:
        """Returns when training may go on: `most_begun` evaluations or fewer are unfinished, and none if training's own
        engines write them. Raises what ended the evaluations.
        """
        self.wait(self._most_begun if self._engines.keeps_weights else 0, waiting)

    def wait(self, most: int = 0, waiting: Callable[[Progress], None] = lambda _: None) -> None:
        """Returns when at most so many evaluations are unfinished. Raises what ended the evaluations."""
        while True:
            with self._changed:
                if self._error is not None:
                    raise self._error
                if len(self._unfinished()) <= most:
                    return
                self._changed.wait(POLL_SECONDS)
            progress = self._held_out.progress()
            if progress is not None:
                waiting(progress)

    def finished(self) -> Iterator[tuple[int, Metrics]]:
        """(step, metrics) of evaluations that are done, each once; asking for the next says that the last is recorded."""
        while self._done:
            pinned, metrics = self._done[0]
            yield pinned.step, metrics
            self._done.popleft()
            self._pinned.end(pinned.step)

    def close(self) -> None:
        """Stops; what was written is in the journal, and the next start of the run goes on with it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._engines.close()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _unfinished(self) -> list[Pinned]:
        return [*([self._running] if self._running else []), *self._waiting]

    def _begin(self, version: WeightVersion, weights: Path) -> None:
        self._queue(self._pinned.begin(version, weights if self._engines.keeps_weights else None))

    def _queue(self, pinned: Pinned) -> None:
        with self._changed:
            self._waiting.append(pinned)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="evaluation", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:  # one loop for all: what a component keeps may belong to its loop
                while (pinned := self._next()) is not None:
                    metrics = self._try(runner, pinned)
                    with self._changed:
                        if metrics is not None:
                            self._done.append((pinned, metrics))
                        self._running = None
                        self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = None if self._closing else error
                self._changed.notify_all()

    def _next(self) -> Pinned | None:
        """Waits for an evaluation; None when the run ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting)
            self._running = None if self._closing else self._waiting.popleft()
            return self._running

    def _try(self, runner: asyncio.Runner, pinned: Pinned) -> Metrics | None:
        """The metrics; None when engines failed that training does not need. The next start of the run tries again."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._evaluate(runner, pinned)
            except LwzError as error:
                if self._closing or not self._engines.keeps_weights:
                    raise
                how = "is begun again" if attempt < ATTEMPTS else "is left to the next start of the run"
                log.warning("the evaluation after step %d %s: %s", pinned.step, how, error)
        return None

    def _evaluate(self, runner: asyncio.Runner, pinned: Pinned) -> Metrics:
        begun = time.monotonic()
        groups, version = self._held_out.take_up(self._prompts, self._samples, pinned.version)
        pool = self._engines.serve(version, pinned.weights)
        metrics = runner.run(self._write(groups, pool))
        return metrics | {"eval/seconds": time.monotonic() - begun}

    async def _write(self, groups: Sequence[GroupDraft], pool: EnginePool) -> Metrics:
        with self._changed:
            if self._closing:
                raise asyncio.CancelledError
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.current_task()
        try:
            return await self._measure(await self._held_out.write(groups, pool))
        finally:
            with self._changed:
                self._loop = self._task = None
