"""The trainer's side of the rollouts: rank 0 hosts engines, journal and controller; all ranks get the same batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial

from megatron_lwz.config import Config
from megatron_lwz.distributed import exchange, heartbeat
from megatron_lwz.errors import Interrupted
from megatron_lwz.orchestrator.experience import Experience
from megatron_lwz.orchestrator.host import local_host
from megatron_lwz.orchestrator.protocol import Host, Waiting
from megatron_lwz.orchestrator.remote import remote_host
from megatron_lwz.profiling.spans import PHASES, SYNC, Recorder, Span
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.deadline import Deadline
from megatron_lwz.training.run_folder import RunFolder, due
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.turns import Turns
from megatron_lwz.training.weight_sync import Transport, make_transport
from megatron_lwz.types import SequenceBatch, WeightVersion


@contextmanager
def open_rollouts(
    config: Config, run: RunFolder, state: TrainState, waiting: Waiting, deadline: Deadline, spans: Recorder
) -> Iterator[Rollouts]:
    """Exports the policy, starts (or connects to) the engines with it, opens the journal; closes everything on exit.

    The host reads prompts and rewards, and asks running engines, before the first file of the run is written.
    Collective. On rank 0 `waiting` is called with the progress while the trainer waits for rollouts, at most as long as
    `deadline` allows. `spans` records the parts of weight syncs. Raises LwzError.
    """
    transport = partial(make_transport, config=config, root=run.weights, chunks=state.policies)
    with ExitStack() as stack:
        host: Host | None = None

        def open_on_rank_zero() -> None:
            nonlocal host
            with heartbeat.waiting("its servers"):
                host = stack.enter_context(open_host(config, run, state.step, deadline.interrupting(waiting)))

        exchange.from_rank_zero(open_on_rank_zero)
        first = WeightVersion(state.step, run.begin(state.step))
        exporter = transport(None)
        version = exporter.prepare(first, folder=config.data.held_out_prompts is not None)
        engines = None
        if host is not None:
            with heartbeat.waiting("its engines"):
                host.connect(version, exporter.folder(version))
            engines = host.engines
        turns = Turns(config, state, engines, version.attempt)
        rollouts = Rollouts(
            config, host, stack.enter_context(closing(transport(engines))), turns, deadline, version, spans
        )
        rollouts.push()
        turns.engines()
        if host is not None:
            host.take_up_evaluations(version, exporter.folder(version))
        yield rollouts


def open_host(config: Config, run: RunPaths, step: int, waiting: Waiting) -> AbstractContextManager[Host]:
    """Opens the host that `rollout.controller` names, for a run that continues from `step`.

    Rank 0, main thread only.
    """
    if config.rollout.controller == "process":
        return remote_host(config, step, waiting)
    return local_host(config, run, step, waiting)


class Rollouts:
    """The rollout operations of the main loop, on every rank.

    Other ranks than 0 wait outside collectives while engines write.
    """

    def __init__(
        self,
        config: Config,
        host: Host | None,
        transport: Transport,
        turns: Turns,
        deadline: Deadline,
        version: WeightVersion,
        spans: Recorder,
    ) -> None:
        self._config = config
        self._host = host
        self._transport = transport
        self._turns = turns
        self._deadline = deadline
        self._version = version
        self._spans = spans
        self._pushes = 0

    def stream(self, step: int) -> Iterator[Experience]:
        """Yields the rollout batch of `step`, scored and with advantages; the same on every rank.

        The batch is one Experience, or with `training.accumulate_groups` several parts, each as soon as its groups are
        ready. It ends early, with `deadline.passed`, when the run must save and end without this step.
        """
        self._turns.engines()
        parts = self._host.experience(step) if self._host is not None else None
        for number in itertools.count():
            ready = f"rollouts/{self._version.attempt}/{step}/{number}"
            self._deadline.begin_wait(ready)
            part = None
            if parts is None:
                exchange.wait_until_posted(ready, math.inf, self._deadline.meanwhile)
            else:
                part = self._awaited(parts, ready)
            self._turns.trainer()
            if parts is not None:
                exchange.post(ready)
            if self._deadline.end_wait(interrupted=parts is not None and part is None):
                return
            part = _shared(part)
            yield part
            if part.last:
                return

    def _awaited(self, parts: Iterator[Experience], ready: str) -> Experience | None:
        """Returns the next part, on rank 0. None if the run must not wait for it: then no engine writes any more."""
        assert self._host is not None
        with heartbeat.waiting(ready):
            try:
                return next(parts)
            except Interrupted:
                self._host.halt()
                return None

    def update_weights(self, step: int) -> None:
        """Sends the policy after `step` updates to the engines.

        On return the rollouts that `step` trained on are durable.
        """
        config = self._config
        evaluated = config.data.held_out_prompts is not None and due(step, config.evaluation.interval, config)
        with self._spans.span(SYNC, "prepare"):
            self._version = self._transport.prepare(replace(self._version, step=step), folder=evaluated)
        self.push()
        if self._host is not None:
            self._host.settle()

    def push(self) -> None:
        """Makes the engines load the version last prepared.

        Compares checksums the first time and at the configured interval.
        """
        self._turns.weights()
        with self._spans.span(SYNC, "push"):
            self._transport.push(self._version)
        interval = self._config.weight_sync.verify_interval
        compare = self._pushes == 0 or (interval > 0 and self._pushes % interval == 0)
        if compare and self._config.rollout.engine == "embedded":  # vLLM computes a different checksum
            with self._spans.span(SYNC, "verify"):
                self._transport.verify(self._version)
        self._pushes += 1
        if self._host is not None:
            self._host.set_version(self._version)

    def record(self, on: bool) -> list[Span]:
        """Turns the recording of engines and rewards on or off. Returns, on rank 0, what was recorded until now."""
        return self._host.record(on) if self._host is not None else []

    def trained(self, step: int) -> None:
        """Records that the batch handed out last was trained on; the policy now has `step` updates."""
        if self._host is not None:
            self._host.trained(step)

    def lengths(self, step: int) -> dict[str, float]:
        """Returns the metrics `length/…` once `step` is trained, on rank 0 alone; may log a warning."""
        return self._host.lengths(step) if self._host is not None else {}

    def checkpointed(self, step: int) -> None:
        """Records that the checkpoint of `step` is on disk: after a kill its rollouts are not trained on again."""
        if self._host is not None:
            self._host.checkpointed(step)

    def evaluate(self) -> None:
        """Starts to evaluate the weights pushed last on the held-out prompts.

        Waits for the result unless evaluation is concurrent.
        """
        if self._host is not None and self._config.data.held_out_prompts is not None:
            if not self._config.evaluation.concurrent:
                self._turns.engines()
            with heartbeat.waiting("an evaluation"), self._spans.span(PHASES, "evaluation"):
                self._host.evaluate(self._version, self._transport.folder(self._version))

    def evaluated(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yields (step, metrics `eval/…`) of the finished evaluations, each once."""
        if self._host is not None:
            for step, metrics in self._host.evaluated():
                yield step, metrics | {"eval/steps_behind": float(self._version.step - step)}

    def finish_evaluations(self) -> None:
        """Waits for all evaluations that were started. Collective: the other ranks wait outside collectives."""
        if not self._config.evaluation.concurrent:
            self._turns.engines()
        done = f"evaluations/{self._version.attempt}"
        if self._host is None:
            exchange.wait_until_posted(done, math.inf)
            return
        with heartbeat.waiting(done):
            self._host.finish_evaluations()
        exchange.post(done)


def _shared(part: Experience | None) -> Experience:
    """Returns rank 0's part on every rank. Collective."""
    if part is None:
        told = exchange.broadcast_json()
        return Experience(SequenceBatch(**exchange.broadcast_tensors()), **told)
    exchange.broadcast_json({"metrics": part.metrics, "last": part.last, "rollouts": part.rollouts})
    exchange.broadcast_tensors(vars(part.batch))
    return part
