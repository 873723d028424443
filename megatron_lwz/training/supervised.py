"""The loop of all stages that learn from given text: batches → loss → update.

Shared by pretraining, SFT, reward models and preference optimisation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from megatron_lwz.algorithms.language_modeling import language_modeling_loss
from megatron_lwz.config import Config
from megatron_lwz.config.flops import training_passes
from megatron_lwz.config.sections import TrainingSection
from megatron_lwz.data.supervised import BatchSource, SupervisedBatch
from megatron_lwz.distributed import groups
from megatron_lwz.errors import CheckpointError, ConfigError
from megatron_lwz.kernels.linear_logprob import AutogradTokenLoss, TokenLoss
from megatron_lwz.metrics import MetricsWriter
from megatron_lwz.models.hf.export import export_policy
from megatron_lwz.models.hf.target import drop_unfinished
from megatron_lwz.profiling.spans import PHASES
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.batching import make_micro_batches
from megatron_lwz.training.checkpoint_saver import CheckpointSaver
from megatron_lwz.training.deadline import Deadline
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.profiler import Profiler
from megatron_lwz.training.resume import check_records, restore
from megatron_lwz.training.run_folder import RunFolder, due
from megatron_lwz.training.spikes import SpikeGuard
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import LossFn, StepResult, TokenLossFn, forward_metrics, train_step
from megatron_lwz.training.throughput import forward_flops, per_gpu
from megatron_lwz.training.trackers import open_metrics
from megatron_lwz.types import MicroBatch

OnStep = Callable[[int, Mapping[str, float]], None]
"""Called after every step, on every rank, with the step and the metrics to show."""

HeldOut = Mapping[str, Sequence[SupervisedBatch]]
"""Batches by name of the validation source."""

B = TypeVar("B", bound=SupervisedBatch)


class Task(Protocol[B]):
    """The part of the loop that depends on the kind of training. All ranks make the same calls."""

    @property
    def shown(self) -> Sequence[str]:
        """Names of the metrics to show."""
        ...

    @property
    def token_loss(self) -> TokenLossFn | None:
        """The loss for the gradient in the forward pass. None: the loss of `objective` is differentiated instead."""
        ...

    def begin(self, state: TrainState) -> None:
        """Sees the state that the run begins with, before a checkpoint is loaded into it."""
        ...

    def take(self, cursor: int, count: int) -> tuple[B, int]:
        """Returns the batch that starts at `cursor`, and the cursor after it."""
        ...

    def micro_batches(self, batch: B, config: Config) -> list[MicroBatch]:
        """Returns this rank's micro-batches of the batch."""
        ...

    def least_tokens(self, config: Config) -> int:
        """Returns the least `training.tokens_per_micro_batch` that the stage accepts."""
        ...

    def objective(self, batch: B) -> LossFn:
        """Returns the loss function for micro-batches of this batch: summed loss and metric sums."""
        ...

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Returns the metrics on held-out data; empty without such data."""
        ...

    def export(self, state: TrainState, folder: Path) -> None:
        """Writes the trained weights in Hugging Face's format."""
        ...


def run_task(config: Config, run: RunFolder, task: Task[B], on_step: OnStep, profiler: Profiler | None = None) -> None:
    """Runs or resumes the training of `config` in an unfinished run folder; all ranks call it.

    Writes checkpoints, metrics.jsonl, evaluation.jsonl, summary.json and, in `hf/`, the trained weights in Hugging
    Face's format. Under the same layout a resumed run repeats an uninterrupted one bit for bit. Raises LwzError.
    """
    started = time.monotonic()
    profiler = profiler or Profiler()
    spans = profiler.spans
    deadline = Deadline(config)
    check_records(run)
    state = build_train_state(config)
    state.room.least_tokens = task.least_tokens(config)
    task.begin(state)
    position: dict[str, Any] = restore(state, run) if run.resume else {"cursor": 0}
    cursor = cursor_of(position, run)
    run.begin(state.step)
    guard = SpikeGuard(config.training, run.skipped, position.get("guard"))
    writer = open_metrics(config) if groups.is_rank_zero() else None
    if state.step == 0:
        _evaluate(task, state, writer)

    with CheckpointSaver(state, run.checkpoints) as saver, profiler.recording(run):
        for _ in profiler.steps(deadline.steps(state.step)):
            begun = time.monotonic()
            with spans.span(PHASES, "data"):
                batch, after = task.take(cursor, sequences_of_step(config.training, state.step))
                micro_batches, loss = task.micro_batches(batch, config), task.objective(batch)
            with spans.span(PHASES, "update"):
                result = train_step(state, micro_batches, loss, batch.denominator, task.token_loss, accept=guard.judge)
            state.step += 1
            if not result.applied:
                guard.skip(state.step, result, batch, cursor)
            cursor = after
            metrics = step_metrics(config, batch, result, time.monotonic() - begun) | {"skipped": float(guard.skipped)}
            if writer:
                writer.write(state.step, metrics)
            on_step(state.step, {name: metrics[name] for name in task.shown if name in metrics})
            if due(state.step, config.evaluation.interval, config):
                with spans.span(PHASES, "evaluation"):
                    _evaluate(task, state, writer)
            if deadline.reached(state.step, saver.longest) or due(state.step, config.checkpoint.interval, config):
                with spans.span(PHASES, "checkpoint"):
                    saver.save({"cursor": cursor, "guard": guard.state()})
            saver.poll()

    deadline.check(run.root, state.step)
    guard.check_progress(state.step)
    if groups.is_rank_zero():
        drop_unfinished(run.hf)
    task.export(state, run.hf)
    if writer:
        writer.close(time.monotonic() - started)


@dataclass(frozen=True)
class LanguageModeling:
    """Next-token prediction as a Task: pretraining and SFT."""

    data: BatchSource
    held_out: HeldOut
    z_loss: float
    shown: Sequence[str] = ("loss", "tokens_per_second", "mfu")

    def begin(self, state: TrainState) -> None:
        """The loss needs nothing of the initial state."""

    def take(self, cursor: int, count: int) -> tuple[SupervisedBatch, int]:
        """Returns the next batch of the data."""
        return self.data.take(cursor, count)

    def micro_batches(self, batch: SupervisedBatch, config: Config) -> list[MicroBatch]:
        """Returns this rank's micro-batches; sequences may be packed in any combination."""
        return make_micro_batches(batch.sequences, config, batch.weights)

    def least_tokens(self, config: Config) -> int:
        """Returns the longest sequence."""
        return config.training.sequence_length

    def objective(self, _batch: SupervisedBatch) -> LossFn:
        """Returns the weighted cross-entropy."""
        return Objective(self.z_loss).loss

    @property
    def token_loss(self) -> TokenLossFn:
        """The weighted cross-entropy, for the gradient in the forward pass."""
        return Objective(self.z_loss).token_loss

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Returns the loss of every validation source."""
        return validation_losses(state, self.held_out)

    def export(self, state: TrainState, folder: Path) -> None:
        """Writes the policy with its tokenizer."""
        export_policy(state.policies, folder, config_files_from=state.config.tokenizer_dir())


@dataclass(frozen=True)
class Objective:
    """The next-token loss of a micro-batch, in the two forms that a step uses."""

    z_loss: float

    def loss(
        self, statistics: torch.Tensor, micro_batch: MicroBatch, _index: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns (summed loss, metric sums) of the statistics [3, T]."""
        return language_modeling_loss(statistics, micro_batch.weights, z_loss=self.z_loss)

    def token_loss(self, micro_batch: MicroBatch, _index: int) -> TokenLoss:
        """Returns the same loss, for the gradient in the forward pass."""

        def loss(*columns: torch.Tensor) -> torch.Tensor:
            *statistics, rows = columns
            return language_modeling_loss(torch.stack(statistics), micro_batch.weights[rows], z_loss=self.z_loss)[0]

        return AutogradTokenLoss(loss, micro_batch.labels.numel())


def cursor_of(position: Mapping[str, Any], run: RunPaths) -> int:
    """Returns the data cursor that a checkpoint of the run holds. Raises CheckpointError for one of another stage."""
    cursor = position.get("cursor")
    if type(cursor) is not int:
        raise CheckpointError(run.root, "its checkpoints are of another stage (no data cursor): choose another run.dir")
    return cursor


def check_supervised(config: Config) -> None:
    """Checks the requirements of all these stages beyond single fields. Raises ConfigError."""
    training = config.training
    if training.tokens_per_micro_batch < training.sequence_length:
        raise ConfigError(
            "training.tokens_per_micro_batch",
            training.tokens_per_micro_batch,
            f"must hold one sequence of training.sequence_length = {training.sequence_length} tokens",
        )
    if training.ramp_from is not None and training.ramp_steps == 0:
        raise ConfigError("training.ramp_steps", 0, "the batch-size ramp (training.ramp_from) needs a length in steps")


def sequences_of_step(section: TrainingSection, step: int) -> int:
    """Returns the batch size of step `step` (from 0): the ramp, then `sequences_per_step`."""
    if section.ramp_from is None or step >= section.ramp_steps:
        return section.sequences_per_step
    return section.ramp_from + (section.sequences_per_step - section.ramp_from) * step // section.ramp_steps


def with_epochs(config: Config, total: int | None) -> Config:
    """Returns the config with enough `training.steps` for `total` sequences or pairs; None leaves it unchanged."""
    if total is None:
        return config
    taken = steps = 0
    while taken < total:
        taken += sequences_of_step(config.training, steps)
        steps += 1
    return config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})})


def step_metrics(config: Config, batch: SupervisedBatch, result: StepResult, seconds: float) -> dict[str, float]:
    """Returns one row of metrics.jsonl.

    Sums of the loss function become means over the denominator. For a language model `loss` is the cross-entropy, in
    nats like `z_loss` and `entropy`. `tokens` counts the tokens trained on, and `tokens_per_second` is their rate.
    Of throughput.py come the figures per GPU: tokens, FLOPs, and `mfu`, the share of the GPUs' peak that these reach.
    """
    means = {name: value / max(1, batch.denominator) for name, value in result.metrics.items() if "/" not in name}
    metrics = {
        "loss": means.pop("cross_entropy", result.loss),
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        **means,
        **{name: value for name, value in result.metrics.items() if "/" in name},
        "sequences": float(len(batch.sequences)),
        "tokens": float(batch.predictions),
        "tokens_per_second": batch.predictions / seconds,
        "seconds": seconds,
    }
    flops = training_passes(config) * forward_flops(config.architecture(), batch.sequences.lengths())
    return metrics | per_gpu(config, batch.predictions, flops, seconds)


def validation_losses(state: TrainState, held_out: HeldOut) -> dict[str, float]:
    """Returns `validation/<source>`: the mean cross-entropy of each source in nats, forward only. Collective."""
    found = {}
    for source, batches in held_out.items():
        total, denominator = 0.0, 0
        for batch in batches:
            micro_batches = make_micro_batches(batch.sequences, state.config, batch.weights)
            total += forward_metrics(state, micro_batches, Objective(0.0).loss)["cross_entropy"]
            denominator += batch.denominator
        found[f"validation/{source}"] = total / max(1, denominator)
    return found


def _evaluate(task: Task[B], state: TrainState, writer: MetricsWriter | None) -> None:
    found = task.evaluate(state)
    if writer:
        writer.write_evaluation(state.step, found)
