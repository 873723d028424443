"""One step of each stage by the product's own functions, in phases: on fake GPUs for a rehearsal, on real ranks for a dry run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_lwz.config import Config
from megatron_lwz.models.hf.export import stream_policy
from megatron_lwz.models.hf.name_map import tensor_shapes
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.qwen import build_policy
from megatron_lwz.rehearsal import batches
from megatron_lwz.training.dpo import DpoTask
from megatron_lwz.training.grpo_batches import prepare_updates
from megatron_lwz.training.grpo_update import PolicyUpdates
from megatron_lwz.training.optimizer import Schedule, build_optimizer, wrap_data_parallel
from megatron_lwz.training.reference import frozen_model
from megatron_lwz.training.reward_model import PairTask
from megatron_lwz.training.served_teacher import ServedTeacher
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import AccumulatingStep, LossFn, TokenLossFn, forward_metrics
from megatron_lwz.training.supervised import LanguageModeling
from megatron_lwz.training.teacher import Teacher, build_teacher
from megatron_lwz.training.weight_sync.buckets import Buckets
from megatron_lwz.types import MicroBatch, SequenceBatch
from megatron_lwz.units import MIB

Outcome = tuple[int, dict[str, Any]]
"""(micro-batches on this rank, notes)."""


class Watch(Protocol):
    """What looks on while a step runs."""

    def during(self, phase: str) -> AbstractContextManager[None]:
        """The phase runs inside the block."""
        ...

    def begins(self, micro_batch: MicroBatch) -> None:
        """Sees one of this rank's micro-batches before the first pass; all have the same length."""
        ...


def for_stage(config: Config, stage: str) -> Config:
    """Returns the config with the head that the stage trains."""
    if stage != "reward_model":
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"head": "scalar"})})


def build_policies(config: Config, watch: Watch) -> list[PolicyModel]:
    """Returns this rank's model chunks, their weights without meaning."""
    with watch.during("parameters"):
        policies = build_policy(config)
        for policy in policies:
            policy.temperature = config.rollout.temperature
    return policies


def build_state(config: Config, policies: list[PolicyModel], watch: Watch) -> TrainState:
    """Returns the state of a stage, at step 0."""
    with watch.during("gradients"):
        chunks = wrap_data_parallel(policies, config)
    with watch.during("optimizer"):
        return TrainState(chunks, build_optimizer(chunks, config), Schedule(config), 0, config)


def run_step(stage: str, state: TrainState, size: batches.Size, watch: Watch) -> Outcome:
    """Runs one step of a training stage. `size` is that of one update."""
    return _STEPS[stage](stage, state, size, watch)


def run_export(state: TrainState, watch: Watch, see: Callable[[str, Tensor], None] = lambda *_: None) -> int:
    """Exports the weights to host memory. Returns the number of tensors that this rank gets. `see` gets each."""
    dtype, tensors = next(state.policies[0].parameters()).dtype, 0
    with watch.during("export"):
        for name, tensor in stream_policy(state.chunks, dtype):
            if tensor is not None:
                see(name, tensor)
                tensors += 1
    return tensors


def run_buckets(
    state: TrainState, watch: Watch, device: torch.device, see: Callable[[Tensor], None] = lambda _: None
) -> list[int]:
    """Packs what the engines get over NCCL, as `weight_sync.nccl` does on rank 0; the other ranks give it their parts.

    Returns the buckets' sizes in bytes. `see` gets each bucket.
    """
    dtype = next(state.policies[0].parameters()).dtype
    plan = Buckets(tensor_shapes(state.config.architecture()), dtype, state.config.weight_sync.bucket_mib * MIB)
    sizes: list[int] = []
    with watch.during("export"):
        stream = stream_policy(state.chunks, dtype, device=device)
        for bucket in plan.pack(stream, device) if dist.get_rank() == 0 else ():
            see(bucket)
            sizes.append(bucket.numel())
        for _name, tensor in stream:
            assert tensor is None, "only rank 0 gets whole tensors"
    return sizes


class _Silent(ServedTeacher):
    """A teacher on a server, without the server."""

    def logprobs(self, batch: SequenceBatch) -> Tensor:
        return torch.zeros(len(batch.tokens))


def _grpo(_stage: str, state: TrainState, size: batches.Size, watch: Watch) -> Outcome:
    config = state.config
    batch = batches.sequences(config, size.times(config.training.updates_per_batch))
    with watch.during("log-probs"):
        reference = frozen_model(
            state, lambda config: Teacher(build_teacher(config)), _Silent
        )  # weights without meaning
        watch.begins(batches.first_micro_batch(batch, config))
        updates = prepare_updates(state, batch, config, reference)
    run = PolicyUpdates(state, config)
    with watch.during("forward+backward"):
        run.add(updates, last=True)
    with watch.during("step"):
        losses = run.finish()
    passes = len(config.log_prob_passes())
    notes = {"metrics": sorted(losses[0]), "log_prob_passes": passes}
    return sum(len(update.micro_batches) for update in updates), notes


def _language_modeling(stage: str, state: TrainState, size: batches.Size, watch: Watch) -> Outcome:
    config = state.config
    batch = batches.supervised(config, size, prompt=1 if stage == "pretrain" else None)
    task = LanguageModeling(_NoData(), {}, config.training.z_loss)
    micro_batches = task.micro_batches(batch, config)
    watch.begins(micro_batches[0])
    _optimizer_step(state, micro_batches, task.objective(batch), batch.denominator, task.token_loss, watch)
    with watch.during("forward"):
        forward_metrics(state, micro_batches, task.objective(batch))
    return len(micro_batches), {}


def _reward_model(_stage: str, state: TrainState, size: batches.Size, watch: Watch) -> Outcome:
    config = state.config
    batch = batches.pairs(config, size)
    nothing: Any = _NoData()
    task = PairTask(config.reward_model, nothing, (), rendering=nothing)
    micro_batches = task.micro_batches(batch, config)
    watch.begins(micro_batches[0])
    _optimizer_step(state, micro_batches, task.objective(batch), batch.denominator, task.token_loss, watch)
    return len(micro_batches), {}


def _dpo(_stage: str, state: TrainState, size: batches.Size, watch: Watch) -> Outcome:
    config = state.config
    batch = batches.policy_pairs(config, size)
    nothing: Any = _NoData()
    task = DpoTask(config.dpo, nothing, ())
    with watch.during("log-probs"):
        task.begin(state)
        watch.begins(batches.first_micro_batch(batch.sequences, config))
        micro_batches = task.micro_batches(batch, config)
    _optimizer_step(state, micro_batches, task.objective(batch), batch.denominator, task.token_loss, watch)
    return len(micro_batches), {"log_prob_passes": 1}


def _optimizer_step(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    loss: LossFn,
    denominator: int,
    token_loss: TokenLossFn | None,
    watch: Watch,
) -> None:
    """Works like `train_step`, in two phases."""
    step = AccumulatingStep(state)
    with watch.during("forward+backward"):
        step.add(micro_batches, loss, token_loss, last=True)
    with watch.during("step"):
        step.finish(denominator, accept=lambda _: True)


_STEPS: dict[str, Callable[[str, TrainState, batches.Size, Watch], Outcome]] = {
    "grpo": _grpo,
    "sft": _language_modeling,
    "pretrain": _language_modeling,
    "reward_model": _reward_model,
    "dpo": _dpo,
}


class _NoData:
    """A source that is never asked: the batches are made here."""

    total = None

    def take(self, _cursor: int, _count: int) -> Any:
        """Never called."""
        raise AssertionError("such a step makes its own batches")
