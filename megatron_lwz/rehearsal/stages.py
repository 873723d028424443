"""One step of each stage by the product's own functions, in the phases that the ledger counts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist

from megatron_lwz.config import Config
from megatron_lwz.models.hf.export import stream_policy
from megatron_lwz.models.hf.name_map import tensor_shapes
from megatron_lwz.models.qwen2 import build_policy
from megatron_lwz.rehearsal import batches
from megatron_lwz.rehearsal.case import Case
from megatron_lwz.rehearsal.checkpoints import rehearse_checkpoints
from megatron_lwz.rehearsal.cuda import DEVICE
from megatron_lwz.rehearsal.device import FakeDevice, RehearsalError
from megatron_lwz.training.grpo_batches import prepare_updates
from megatron_lwz.training.grpo_update import PolicyUpdates
from megatron_lwz.training.optimizer import Schedule, build_optimizer, parts, wrap_data_parallel
from megatron_lwz.training.reference import ReferenceWeights
from megatron_lwz.training.reward_model import PairTask
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.state_bytes import state_bytes
from megatron_lwz.training.step import AccumulatingStep, LossFn, TokenLossFn, forward_metrics
from megatron_lwz.training.supervised import LanguageModeling
from megatron_lwz.training.token_logprobs import TokenRow, compute_logprobs
from megatron_lwz.training.weight_sync.buckets import Buckets
from megatron_lwz.types import MicroBatch

MIB = 2**20


@dataclass(frozen=True)
class Rehearsed:
    """What a stage ran with."""

    parameters: int
    """Number of parameters on this rank."""
    micro_batches: int = 0
    notes: dict[str, Any] | None = None
    """`besides`: bytes that stay allocated between steps besides the state, e.g. the angles of the rotary embedding.
    `log_prob_passes`: passes over the batch for old and reference log-probs."""
    state: dict[str, int] = field(default_factory=dict)
    """Bytes of parameters, gradients and optimizer."""


def run_stage(case: Case, config: Config, device: FakeDevice) -> Rehearsed:
    """Builds the state of the stage on the fake device and runs one step. Raises what the product raises."""
    with device.ledger.during("parameters"):
        policies = build_policy(config)
        for policy in policies:
            policy.temperature = config.rollout.temperature
    parameters = sum(parameter.numel() for policy in policies for parameter in policy.parameters())
    if case.stage == "score":
        return Rehearsed(parameters, *_score(case, config, device, policies))
    with device.ledger.during("gradients"):
        chunks = wrap_data_parallel(policies, config)
    with device.ledger.during("optimizer"):
        state = TrainState(chunks, build_optimizer(chunks, config), Schedule(config), 0, config)
        _choose_as_on_a_gpu(state)
    held = asdict(state_bytes(state))
    packs, notes = _STAGES[case.stage](case, state, device)
    for stage in case.then:
        notes |= _STAGES[stage](case, state, device)[1]
    gc.collect()  # else cycles would count
    notes["besides"] = device.ledger.bytes - sum(held.values())
    return Rehearsed(parameters, packs, notes, held)


def _choose_as_on_a_gpu(state: TrainState) -> None:
    """Makes torch's Adam update all tensors at once, with temporary copies: its choice for tensors of a GPU, not fake."""
    for part in parts(state.optimizer):
        if isinstance(part.optimizer, torch.optim.AdamW):
            for group in part.optimizer.param_groups:
                group["foreach"] = True


Outcome = tuple[int, dict[str, Any]]
"""(micro-batches on this rank, notes)."""


def _grpo(case: Case, state: TrainState, device: FakeDevice) -> Outcome:
    config, ledger = state.config, device.ledger
    batch = batches.sequences(config, _size(case, updates=config.training.updates_per_batch))
    with ledger.during("log-probs"):
        reference = ReferenceWeights(state) if config.grpo.kl_coefficient > 0 else None
        _expect_activations(device, config, batches.first_micro_batch(batch, config))
        updates = prepare_updates(state, batch, config, reference)
    run = PolicyUpdates(state, config)
    with ledger.during("forward+backward"):
        run.add(updates, last=True)
    with ledger.during("step"):
        losses = run.finish()
    passes = (config.training.updates_per_batch > 1) + (reference is not None)
    notes = {"metrics": sorted(losses[0]), "log_prob_passes": passes}
    return sum(len(update.micro_batches) for update in updates), notes


def _language_modeling(case: Case, state: TrainState, device: FakeDevice) -> Outcome:
    config, ledger = state.config, device.ledger
    batch = batches.supervised(config, _size(case), prompt=1 if case.stage == "pretrain" else None)
    task = LanguageModeling(_NoData(), {}, config.training.z_loss)
    micro_batches = task.micro_batches(batch, config)
    _expect_activations(device, config, micro_batches[0])
    _optimizer_step(state, micro_batches, task.objective(batch), batch.denominator, task.token_loss, device)
    with ledger.during("forward"):
        forward_metrics(state, micro_batches, task.objective(batch))
    return len(micro_batches), {}


def _reward_model(case: Case, state: TrainState, device: FakeDevice) -> Outcome:
    config = state.config
    batch = batches.pairs(config, _size(case))
    nothing: Any = _NoData()
    task = PairTask(config.reward_model, nothing, (), rendering=nothing)
    micro_batches = task.micro_batches(batch, config)
    _expect_activations(device, config, micro_batches[0])
    _optimizer_step(state, micro_batches, task.objective(batch), batch.denominator, task.token_loss, device)
    return len(micro_batches), {}


def _optimizer_step(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    loss: LossFn,
    denominator: int,
    token_loss: TokenLossFn | None,
    device: FakeDevice,
) -> None:
    """Works like `train_step`, in two phases."""
    step = AccumulatingStep(state)
    with device.ledger.during("forward+backward"):
        step.add(micro_batches, loss, token_loss, last=True)
    with device.ledger.during("step"):
        step.finish(denominator, accept=lambda _: True)


def _score(case: Case, config: Config, device: FakeDevice, policies: Sequence[Any]) -> Outcome:
    batch = batches.sequences(config, _size(case))
    spans = batch.offsets.tolist()
    rows = [
        TokenRow(str(index), tuple(batch.tokens[start:end].tolist()), int(batch.prompt_lengths[index]))
        for index, (start, end) in enumerate(pairwise(spans))
    ]
    _expect_activations(device, config, batches.first_micro_batch(batch, config))
    with device.ledger.during("forward"):
        values = compute_logprobs(policies, rows, config)
    _require(all(logprobs.device.type == "cpu" for logprobs, _ in values), "log-probs must end in host memory")
    return case.micro_batches, {}


def _export(_case: Case, state: TrainState, device: FakeDevice) -> Outcome:
    dtype = next(state.policies[0].parameters()).dtype
    tensors = 0
    with device.ledger.during("export"):
        for name, tensor in stream_policy(state.chunks, dtype):
            if tensor is not None:
                _require(
                    tensor.device.type == "cpu" and tensor.dtype == dtype, f"{name}: {tensor.device} {tensor.dtype}"
                )
                tensors += 1
    return 0, {"tensors": tensors}


def _buckets(_case: Case, state: TrainState, device: FakeDevice) -> Outcome:
    """Packs what the engines get over NCCL, as `weight_sync.nccl` does on rank 0; the other ranks give it their parts."""
    dtype = next(state.policies[0].parameters()).dtype
    plan = Buckets(tensor_shapes(state.config.architecture()), dtype, state.config.weight_sync.bucket_mib * MIB)
    sizes: list[int] = []
    with device.ledger.during("export"):
        stream = stream_policy(state.chunks, dtype, device=DEVICE)
        for bucket in plan.pack(stream, DEVICE) if dist.get_rank() == 0 else ():
            fits = bucket.device.type == "cuda" and bucket.dtype == torch.uint8 and bucket.is_contiguous()
            _require(fits, f"a bucket of {bucket.dtype} on {bucket.device}")
            sizes.append(bucket.numel())
        _require(all(tensor is None for _, tensor in stream), "only rank 0 gets whole tensors")
    return 0, {"buckets": len(sizes), "largest": max(sizes, default=0)}


def _checkpoint(_case: Case, state: TrainState, device: FakeDevice) -> Outcome:
    return 0, rehearse_checkpoints(state, device)


_STAGES: dict[str, Callable[[Case, TrainState, FakeDevice], Outcome]] = {
    "grpo": _grpo,
    "sft": _language_modeling,
    "pretrain": _language_modeling,
    "reward_model": _reward_model,
    "export": _export,
    "buckets": _buckets,
    "checkpoint": _checkpoint,
}


def _size(case: Case, *, updates: int = 1) -> batches.Size:
    return batches.Size(case.sequence, case.micro_batches * updates, case.fill)


class _NoData:
    """A source that is never asked: the batches are made here."""

    total = None

    def take(self, _cursor: int, _count: int) -> Any:
        """Never called."""
        raise AssertionError("a rehearsal makes its own batches")


def _expect_activations(device: FakeDevice, config: Config, micro_batch: MicroBatch) -> None:
    """Tells the device the shape of the activations that neighbours in the pipeline send: [T (/ TP), 1, H]."""
    layout = config.parallel
    shared = layout.tensor if layout.sequence else 1
    device.arriving_shape = (micro_batch.tokens.numel() // shared, 1, config.architecture().hidden_size)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise RehearsalError(what)
