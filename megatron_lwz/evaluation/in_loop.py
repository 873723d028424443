"""Evaluation beside training: rollouts of held-out prompts by one version of the weights while training continues.

A thread runs evaluations one after the other. It makes the engine serve the pinned weights, generates and scores the
rollouts, and passes the metrics to the loop. All generated tokens are in the run's journal, so a killed run resumes its
evaluations.
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
"""Seconds that `close` waits for the thread: external engines may be loading weights. No generated token is lost."""
ATTEMPTS = 2
"""Maximum number of attempts of an evaluation in one process. After that, the next start of the run retries it."""

log = logging.getLogger(__name__)

Metrics = dict[str, float]
Measure = Callable[[Sequence[Group]], Awaitable[Metrics]]


class EvaluationEngines(Protocol):
    """The engines that generate evaluation rollouts. All methods but `close` are called in the evaluation thread."""

    keeps_weights: bool
    """Whether training may continue during an evaluation. Each evaluation then keeps its own copy of the weights."""

    def serve(self, version: WeightVersion, weights: Path | None) -> EnginePool:
        """Returns a pool whose engines serve these weights as this version, until the next call. Raises EngineError."""
        ...

    def close(self) -> None:
        """Stops the engines that were started, and ends a waiting `serve`."""
        ...


class InLoopEvaluation:
    """Runs evaluations in a thread beside training. Its methods must be called from the loop's main thread."""

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
        """Takes `measure`, which computes metrics of an evaluation's groups. `most_begun` is the limit of `settle`."""
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
        """Resumes the evaluations that an earlier process left unfinished, without waiting for them.

        `version` and `weights` are the run's current ones. Evaluations of later steps are discarded, because those
        steps are done again. An evaluation whose weights are gone is discarded with a warning in the log.
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
        """Begins an evaluation of `version`, exported in `weights`. Returns when training may continue (see `settle`).

        Raises the error that ended the evaluations, if there was one.
        """
        with self._changed:
            known = {pinned.step for pinned in self._unfinished()} | {pinned.step for pinned, _ in self._done}
        if version.step not in known:
            self._begin(version, weights)
        self.settle(waiting)

    def settle(self, waiting: Callable[[Progress], None] = lambda _: None) -> None:
        """Returns when training may continue: at most `most_begun` evaluations are unfinished.

        If training's own engines run the evaluations, it waits until none is unfinished. Raises the error that ended
        the evaluations, if there was one.
        """
        self.wait(self._most_begun if self._engines.keeps_weights else 0, waiting)

    def wait(self, most: int = 0, waiting: Callable[[Progress], None] = lambda _: None) -> None:
        """Waits until at most `most` evaluations are unfinished. Raises the error that ended evaluations, if any."""
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
        """Yields (step, metrics) of each finished evaluation once.

        When the next one is requested, the previous one counts as recorded and is removed.
        """
        while self._done:
            pinned, metrics = self._done[0]
            yield pinned.step, metrics
            self._done.popleft()
            self._pinned.end(pinned.step)

    def close(self) -> None:
        """Stops the evaluations. Generated tokens are in the journal; the next start of the run resumes from them."""
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
            with asyncio.Runner() as runner:  # one loop for all evaluations: a component's state may belong to its loop
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
        """Waits for the next evaluation and returns it, or None when the run ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting)
            self._running = None if self._closing else self._waiting.popleft()
            return self._running

    def _try(self, runner: asyncio.Runner, pinned: Pinned) -> Metrics | None:
        """Returns the metrics, or None when engines failed that training does not need.

        In that case, the next start of the run tries again.
        """
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
