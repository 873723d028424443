"""GRPO for long writing (LongWriter-Zero, section 3): the main loop.

Every rank runs it. Only rank 0 talks to the engines; the other ranks join it when a rollout batch is ready.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import torch.distributed as dist

from megatron_lwz.algorithms.loss_function import check_loss_function
from megatron_lwz.config import Config
from megatron_lwz.distributed import groups, launch, platform
from megatron_lwz.metrics import MetricsWriter, Timer
from megatron_lwz.profiling.spans import PHASES
from megatron_lwz.rollout.progress import Progress
from megatron_lwz.training.best import mark_best
from megatron_lwz.training.checkpoint_saver import CheckpointSaver
from megatron_lwz.training.deadline import Deadline
from megatron_lwz.training.grpo_batches import prepare_updates
from megatron_lwz.training.grpo_update import PolicyUpdates, mean_metrics
from megatron_lwz.training.numerics_guard import NumericsGuard
from megatron_lwz.training.profiler import Profiler
from megatron_lwz.training.reference import Frozen, first_state
from megatron_lwz.training.resume import check_records, restore
from megatron_lwz.training.rollouts import Rollouts, open_rollouts
from megatron_lwz.training.run_folder import RunFolder, due
from megatron_lwz.training.start import check_grpo_start
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.throughput import Throughput
from megatron_lwz.training.token_values import recorder_of
from megatron_lwz.training.trackers import open_metrics


class Display(Protocol):
    """The interface that shows a person the progress of the run."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows that `step` updates are done."""
        ...

    def phase(self, name: str) -> None:
        """Shows what the present step does from now on."""
        ...

    def waiting(self, progress: Progress) -> None:
        """Shows the progress while the trainer waits for rollouts."""
        ...


def train(config: Config, display: Display, profiler: Profiler) -> RunFolder:
    """Runs or resumes GRPO; every rank calls it. Returns the run folder. Raises LwzError."""
    launch.initialize(config)
    check_grpo_start(config)
    check_loss_function(config.grpo, platform.device())
    deadline = Deadline(config)
    started = time.monotonic()
    run = RunFolder(config, "grpo")
    if run.finished:
        return run
    check_records(run)
    state, reference, guard = _load(config, run)
    timer, throughput = Timer(profiler.spans, display.phase), Throughput(config)

    with (
        open_rollouts(config, run, state, display.waiting, deadline, profiler.spans) as rollouts,
        CheckpointSaver(state, run.checkpoints, rollouts.checkpointed) as saver,
        profiler.recording(run, rollouts.record),
    ):
        writer = open_metrics(config) if groups.is_rank_zero() else None
        if state.step == 0:
            rollouts.evaluate()

        for step in profiler.steps(deadline.steps(state.step)):
            policy_updates = PolicyUpdates(state, config, guard, recorder_of(config, run, step))
            # prompts → rollouts → rewards → advantages, packed flat: the whole batch, or parts as soon as they are ready
            for experience in throughput.count(timer.each("rollout", rollouts.stream(step))):
                with timer("logprobs"), platform.completed():
                    updates = prepare_updates(state, experience.batch, config, reference, experience.rollouts)
                with timer("update"), platform.completed():
                    policy_updates.add(updates, last=experience.last)
            if deadline.passed:  # while it waited: what was trained of the step is forgotten, its rollouts are kept
                _save_once(saver, state, guard)
                break
            with timer("update"):
                metrics = experience.metrics | mean_metrics(policy_updates.finish())
            state.step = step
            rollouts.trained(step)
            with timer("weight_sync"):
                rollouts.update_weights(step)

            metrics |= guard.watch(step, metrics)
            ends = deadline.reached(step, saver.longest)
            with profiler.spans.span(PHASES, "checkpoint"):
                _save(saver, state, guard, due=ends or due(step, config.checkpoint.interval, config))
            saver.poll()
            if writer:
                _write(writer, display, step, metrics | rollouts.lengths(step) | throughput.take(timer.take()))
                if due(step, config.evaluation.interval, config):
                    rollouts.evaluate()
                _record(rollouts, writer)
                mark_best(run, config, step)
            guard.end_step(step, saver.wait)
        if not deadline.passed:  # else the next start takes them up
            _finish_evaluations(rollouts, writer)

    deadline.check(run.root, state.step)
    _finish(run, config, writer, time.monotonic() - started)
    return run


def _load(config: Config, run: RunFolder) -> tuple[TrainState, Frozen | None, NumericsGuard]:
    """Returns the state that the run continues from, the frozen model if the KL term needs one, and the guard."""
    state, reference = first_state(config)
    state.room.least_tokens = config.longest_rollout
    extra = restore(state, run) if run.resume else {}
    return state, reference, NumericsGuard(config, extra.get("guard"))


def _extra(state: TrainState, guard: NumericsGuard) -> dict[str, Any]:
    """Returns what a checkpoint holds beside the state."""
    return {"prompts": state.step * state.config.training.prompts_per_step, "guard": guard.state()}


def _save(saver: CheckpointSaver, state: TrainState, guard: NumericsGuard, *, due: bool) -> None:
    if guard.saves(state, due=due):
        saver.save(_extra(state, guard))


def _save_once(saver: CheckpointSaver, state: TrainState, guard: NumericsGuard) -> None:
    """Saves the state after the last step, unless that is done."""
    if guard.saves(state, due=True):
        saver.save_once(_extra(state, guard))


def _write(writer: MetricsWriter, display: Display, step: int, metrics: dict[str, float]) -> None:
    metrics["tokens_per_second"] = metrics["rollout/tokens"] / _seconds(metrics)
    metrics["tokens_per_second_per_gpu"] = metrics["tokens_per_second"] / dist.get_world_size()
    writer.write(step, metrics)
    display.step(step, metrics)


def _record(rollouts: Rollouts, writer: MetricsWriter) -> None:
    """Writes the metrics of finished evaluations.

    Concurrent ones finish some steps after the step whose weights they measure.
    """
    for step, values in rollouts.evaluated():
        writer.write_evaluation(step, values)


def _finish(run: RunFolder, config: Config, writer: MetricsWriter | None, seconds: float) -> None:
    if writer:
        mark_best(run, config, config.training.steps)
        writer.close(seconds)


def _finish_evaluations(rollouts: Rollouts, writer: MetricsWriter | None) -> None:
    rollouts.finish_evaluations()
    if writer:
        _record(rollouts, writer)


def _seconds(metrics: Mapping[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("seconds/"))
