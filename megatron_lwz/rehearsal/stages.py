"""The stages of a rehearsal on the fake device: one step (steps.py), log-probs of given tokens, export, checkpoints."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from megatron_lwz.config import Config
from megatron_lwz.rehearsal import batches
from megatron_lwz.rehearsal.case import Case
from megatron_lwz.rehearsal.checkpoints import rehearse_checkpoints
from megatron_lwz.rehearsal.cuda import DEVICE
from megatron_lwz.rehearsal.decoding import rehearse_decoding
from megatron_lwz.rehearsal.device import FakeDevice
from megatron_lwz.rehearsal.ledger import RehearsalError
from megatron_lwz.rehearsal.steps import Outcome, build_policies, build_state, run_buckets, run_export, run_step
from megatron_lwz.training.optimizer import parts
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.state_bytes import state_bytes
from megatron_lwz.training.token_logprobs import TokenRow, compute_logprobs
from megatron_lwz.types import MicroBatch


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


class FakeWatch:
    """A Watch that counts what the fake device sees."""

    def __init__(self, device: FakeDevice, config: Config) -> None:
        self.device = device
        self._config = config

    def during(self, phase: str) -> AbstractContextManager[None]:
        """Counts under the phase."""
        return self.device.ledger.during(phase)

    def begins(self, micro_batch: MicroBatch) -> None:
        """Tells the device the shape of the activations that neighbours in the pipeline send: [T (/ TP), 1, H]."""
        layout = self._config.parallel
        shared = layout.tensor if layout.sequence else 1
        hidden = self._config.architecture().hidden_size
        self.device.arriving_shape = (micro_batch.tokens.numel() // shared, 1, hidden)


def run_stage(case: Case, config: Config, device: FakeDevice) -> Rehearsed:
    """Builds the state of the stage on the fake device and runs one step. Raises what the product raises."""
    watch = FakeWatch(device, config)
    policies = build_policies(config, watch)
    parameters = sum(parameter.numel() for policy in policies for parameter in policy.parameters())
    if case.stage == "score":
        return Rehearsed(parameters, *_score(case, config, watch, policies))
    if case.stage == "decode":
        return Rehearsed(parameters, 0, rehearse_decoding(policies[0], device))
    state = build_state(config, policies, watch)
    _choose_as_on_a_gpu(state)
    held = asdict(state_bytes(state))
    packs, notes = _run(case.stage, case, state, watch)
    for stage in case.then:
        notes |= _run(stage, case, state, watch)[1]
    gc.collect()  # else cycles would count
    notes["besides"] = device.ledger.bytes - sum(held.values())
    return Rehearsed(parameters, packs, notes, held)


def _run(stage: str, case: Case, state: TrainState, watch: FakeWatch) -> Outcome:
    if stage in _AFTERWARDS:
        return 0, _AFTERWARDS[stage](state, watch)
    return run_step(stage, state, _size(case), watch)


def _choose_as_on_a_gpu(state: TrainState) -> None:
    """Makes torch's Adam update all tensors at once, with temporary copies: its choice for tensors of a GPU, not fake."""
    for part in parts(state.optimizer):
        if isinstance(part.optimizer, torch.optim.AdamW):
            for group in part.optimizer.param_groups:
                group["foreach"] = True


def _score(case: Case, config: Config, watch: FakeWatch, policies: Sequence[Any]) -> Outcome:
    batch = batches.sequences(config, _size(case))
    spans = batch.offsets.tolist()
    rows = [
        TokenRow(str(index), tuple(batch.tokens[start:end].tolist()), int(batch.prompt_lengths[index]))
        for index, (start, end) in enumerate(pairwise(spans))
    ]
    watch.begins(batches.first_micro_batch(batch, config))
    with watch.during("forward"):
        values = compute_logprobs(policies, rows, config)
    _require(all(logprobs.device.type == "cpu" for logprobs, _ in values), "log-probs must end in host memory")
    return case.micro_batches, {}


def _export(state: TrainState, watch: FakeWatch) -> dict[str, Any]:
    dtype = next(state.policies[0].parameters()).dtype

    def see(name: str, tensor: Tensor) -> None:
        fits = tensor.device.type == "cpu" and tensor.dtype == dtype
        _require(fits, f"{name}: {tensor.device} {tensor.dtype}")

    return {"tensors": run_export(state, watch, see)}


def _buckets(state: TrainState, watch: FakeWatch) -> dict[str, Any]:
    def see(bucket: Tensor) -> None:
        fits = bucket.device.type == "cuda" and bucket.dtype == torch.uint8 and bucket.is_contiguous()
        _require(fits, f"a bucket of {bucket.dtype} on {bucket.device}")

    sizes = run_buckets(state, watch, DEVICE, see)
    return {"buckets": len(sizes), "largest": max(sizes, default=0)}


def _checkpoint(state: TrainState, watch: FakeWatch) -> dict[str, Any]:
    return rehearse_checkpoints(state, watch.device)


_AFTERWARDS: dict[str, Callable[[TrainState, FakeWatch], dict[str, Any]]] = {
    "export": _export,
    "buckets": _buckets,
    "checkpoint": _checkpoint,
}


def _size(case: Case) -> batches.Size:
    return batches.Size(case.sequence, case.micro_batches, case.fill)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise RehearsalError(what)
