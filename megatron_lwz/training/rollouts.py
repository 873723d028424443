"""The trainer's side of the rollouts: rank 0 has a host for engines, journal and controller; every rank gets the same batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial

from megatron_lwz.config import Config
from megatron_lwz.distributed import exchange, groups
from megatron_lwz.orchestrator.experience import Experience
from megatron_lwz.orchestrator.host import local_host
from megatron_lwz.orchestrator.protocol import Host, Waiting
from megatron_lwz.orchestrator.remote import remote_host
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.attempts import record_attempt
from megatron_lwz.training.run_folder import RunFolder, due
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.turns import Turns
from megatron_lwz.training.weight_sync import Transport, make_transport
from megatron_lwz.types import SequenceBatch, WeightVersion


@contextmanager
def open_rollouts(config: Config, run: RunFolder, state: TrainState, waiting: Waiting) -> Iterator[Rollouts]:
    """Exports the policy, starts (or meets) the engines with it, takes up the journal; closes all of it in the end.

    Collective. `waiting` hears on rank 0 how far awaited rollouts are. Raises LwzError.
    """
    transport = partial(make_transport, config=config, root=run.weights, chunks=state.policies)
    with ExitStack() as stack:
        host: Host | None = None
        if groups.is_rank_zero():
            host = stack.enter_context(open_host(config, run, state.step, waiting))
        exporter = transport(None)
        first = WeightVersion(state.step, record_attempt(run, state.step))
        version = exporter.prepare(first, folder=config.data.held_out_prompts is not None)
        engines = None
        if host is not None:
            host.connect(version, exporter.folder(version))
            engines = host.engines
        turns = Turns(config, state, engines, version.attempt)
        rollouts = Rollouts(config, host, stack.enter_context(closing(transport(engines))), turns, version)
        rollouts.push()
        turns.engines()
        if host is not None:
            host.take_up_evaluations(version, exporter.folder(version))
        yield rollouts


def open_host(config: Config, run: RunPaths, step: int, waiting: Waiting) -> AbstractContextManager[Host]:
    """The host that `rollout.controller` asks for; the run goes on from `step`. Rank 0 only, from the main thread."""
    if config.rollout.controller == "process":
        return remote_host(config, run, step, waiting)
    return local_host(config, run, step, waiting)


class Rollouts:
    """What the loop asks for, on every rank. Ranks other than 0 wait outside collectives while engines write."""

    def __init__(
        self, config: Config, host: Host | None, transport: Transport, turns: Turns, version: WeightVersion
    ) -> None:
        self._config = config
        self._host = host
        self._transport = transport
        self._turns = turns
        self._version = version
        self._pushes = 0

    def stream(self, step: int) -> Iterator[Experience]:
        """The rollout batch of `step`, scored, with advantages; the same on every rank.

        As one Experience, or with `training.accumulate_groups` in parts, each as soon as its groups are ready.
        """
        self._turns.engines()
        parts = self._host.experience(step) if self._host is not None else None
        for number in itertools.count():
            ready = f"rollouts/{self._version.attempt}/{step}/{number}"
            if parts is None:
                exchange.wait_until_posted(ready, math.inf)
                self._turns.trainer()
                told = exchange.broadcast_json()
                part = Experience(SequenceBatch(**exchange.broadcast_tensors()), **told)
            else:
                part = next(parts)
                self._turns.trainer()
                exchange.post(ready)
                exchange.broadcast_json({"metrics": part.metrics, "last": part.last})
                exchange.broadcast_tensors(vars(part.batch))
            yield part
            if part.last:
                return

    def update_weights(self, step: int) -> None:
        """Gives the engines the policy as it is after `step` updates; what that trained on is durable at return."""
        config = self._config
        evaluated = config.data.held_out_prompts is not None and due(step, config.evaluation.interval, config)
        self._version = self._transport.prepare(replace(self._version, step=step), folder=evaluated)
        self.push()
        if self._host is not None:
            self._host.settle()

    def push(self) -> None:
        """Has the engines load the version last prepared; compares checksums the first time and every so often."""
        self._turns.weights()
        self._transport.push(self._version)
        interval = self._config.weight_sync.verify_interval
        due = self._pushes == 0 or (interval > 0 and self._pushes % interval == 0)
        if due and self._config.rollout.engine == "embedded":  # vLLM has a checksum of its own making
            self._transport.verify(self._version)
        self._pushes += 1
        if self._host is not None:
            self._host.set_version(self._version)

    def trained(self, step: int) -> None:
        """The batch handed out last was trained on; the policy now has `step` updates."""
        if self._host is not None:
            self._host.trained(step)

    def lengths(self, step: int) -> dict[str, float]:
        """Metrics `length/…` once `step` is trained; may warn. Rank 0 alone has them."""
        return self._host.lengths(step) if self._host is not None else {}

    def checkpointed(self, step: int) -> None:
        """The checkpoint of `step` is on disk: what it was trained on will not come back after a kill."""
        if self._host is not None:
            self._host.checkpointed(step)

    def evaluate(self) -> None:
        """Begins to evaluate the weights pushed last on the held-out prompts; waits for it if it is not concurrent."""
        if self._host is not None and self._config.data.held_out_prompts is not None:
            if not self._config.evaluation.concurrent:
                self._turns.engines()
            self._host.evaluate(self._version, self._transport.folder(self._version))

    def evaluated(self) -> Iterator[tuple[int, dict[str, float]]]:
        """(step, metrics `eval/…`) of evaluations that are done, each once."""
        if self._host is not None:
            for step, metrics in self._host.evaluated():
                yield step, metrics | {"eval/steps_behind": float(self._version.step - step)}

    def finish_evaluations(self) -> None:
        """Waits for all evaluations that were begun. Collective: the other ranks wait outside collectives."""
        if not self._config.evaluation.concurrent:
            self._turns.engines()
        done = f"evaluations/{self._version.attempt}"
        if self._host is None:
            exchange.wait_until_posted(done, math.inf)
            return
        self._host.finish_evaluations()
        exchange.post(done)
