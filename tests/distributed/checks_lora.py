"""Worker side of `test_lora`: runs on every rank and returns measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import exchange, groups
from megatron_lwz.distributed.launch import initialize
from megatron_lwz.models.hf import HfFolder, export_policy
from megatron_lwz.models.hf.adapter import export_adapter
from megatron_lwz.models.hf.export import stream_adapter
from megatron_lwz.models.hf.load import NewAdapter, load_adapter
from megatron_lwz.training.checkpoint import load_checkpoint, run_state
from megatron_lwz.training.checkpoint_writer import write_snapshot
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.reference import ReferenceWeights
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import StepResult, train_step
from tests.distributed.checks_layouts import _distance, _micro_batch, _statistics, _weighted_loss
from tests.support.lora_oracle import CASES, LEARNING_RATE, PACKS, tokens

Tensors = dict[str, Tensor]


class Given(NewAdapter):
    """The oracle's adapters instead of new ones."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__(seed=0)
        self._tensors = tensors

    def read(self, name: str, shape: Any, split: int | None = None, bounds: tuple[int, int] = (0, 0)) -> Tensor:
        whole = self._tensors[name]
        assert tuple(whole.shape) == shape
        return whole if split is None else whole.narrow(split, bounds[0], bounds[1] - bounds[0])


def config_of(folder: str, case: str, sections: dict[str, Any]) -> Config:
    optimizer = {"lr": LEARNING_RATE, "weight_decay": 0.0, "clip_grad": 1.0}
    training = {"precision": "fp32"} | sections.get("training", {})
    parallel = sections.get("parallel", {})
    return validate(
        {
            "model": {"hf": folder},
            "lora": CASES[case],
            "optimizer": optimizer,
            "parallel": parallel,
            "training": training,
        }
    )


def measure(folders: dict[str, str], runs: dict[str, list[Any]]) -> dict[str, Any]:
    """The distances from the oracle by name of a run, which is [case, config sections]."""
    return {name: _measure_one(folders[case], case, sections) for name, (case, sections) in runs.items()}


def _measure_one(folder: str, case: str, sections: dict[str, Any]) -> dict[str, Any]:
    state, given, oracle = _state(config_of(folder, case, sections), folder)
    whole = [_micro_batch(given, pack) for pack in PACKS]
    mine = whole[groups.data_rank() :: groups.data_size()]
    values = _statistics(state.chunks, whole, given)
    with (reference := ReferenceWeights(state)).at_work(state):
        based = _statistics(state.chunks, whole, given)
    again = _statistics(state.chunks, whole, given)
    first = train_step(state, mine, _weighted_loss, tokens(), accept=lambda _: False)
    errors = _gradient_errors(state, oracle)
    steps = [train_step(state, mine, _weighted_loss, tokens()) for _ in range(3)]
    frozen = [p for policy in state.policies for name, p in policy.named_parameters() if not p.requires_grad]
    return {
        "logprob": max((_distance(values[i][0], oracle[f"logprob.{i}"]) for i in values), default=0.0),
        "reference": max((_distance(based[i][0], oracle[f"base.{i}"]) for i in based), default=0.0),
        "switched_back": all(torch.equal(again[i], values[i]) for i in values),
        "reference_bytes": reference.arena.nbytes,
        "loss": max(abs(s.loss - float(r)) for s, r in zip(steps, oracle["loss"], strict=True)),
        "grad_norm": max(
            abs(s.grad_norm / float(r) - 1) for s, r in zip([first, *steps[1:]], oracle["grad_norm"], strict=True)
        ),
        "gradients": errors,
        "untouched": all(p.grad is None and not hasattr(p, "main_grad") for p in frozen),
    }


def _state(config: Config, folder: str) -> tuple[TrainState, Tensors, Tensors]:
    given, oracle = load_file(Path(folder, "given.tensors")), load_file(Path(folder, "oracle.tensors"))
    initialize(config)
    state = build_train_state(config)
    load_adapter(state.policies, Given(given))
    return state, given, oracle


def _gradient_errors(state: TrainState, oracle: Tensors) -> float | None:
    """The largest error of a gradient, relative to its tensor's largest. None where ranks hold shares of the sums."""
    parallel = state.config.parallel
    if parallel.distributed_optimizer and groups.data_context_group().size() > 1:
        return None
    trained = [p for policy in state.policies for p in policy.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in trained]
    for parameter in trained:
        parameter.data.copy_(parameter.main_grad)
    found = _adapter(state)
    for parameter, weight in zip(trained, kept, strict=True):
        parameter.data.copy_(weight)
    expected = {name.removeprefix("gradient."): value for name, value in oracle.items() if name.startswith("gradient.")}
    if groups.is_rank_zero():
        assert found.keys() == expected.keys()
    return max(
        (_distance(found[name], value) / float(value.abs().max()) for name, value in expected.items() if found),
        default=0.0,
    )


def files(folder: str, out: str, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """What a run under the layout `first` saves and exports, and a run under `second` that goes on from it."""
    state, given, _ = _state(config_of(folder, "all", first), folder)
    batches = [_micro_batch(given, pack) for pack in PACKS]
    train_step(state, batches, _weighted_loss, tokens())
    state.step = 1
    write_snapshot(run_state(state, {"cursor": 3}), Path(out, "checkpoint"))
    checksum = export_policy(state.policies, Path(out, "merged"), config_files_from=Path(folder))
    export_adapter(state.policies, Path(out, "adapter"), base=folder)
    saved = _adapter(state)
    merged = _merged_error(Path(folder), Path(out, "merged"), saved)
    going_on = train_step(state, batches, _weighted_loss, tokens())

    config = config_of(folder, "all", second)
    initialize(config)
    state = build_train_state(config)
    extra = load_checkpoint(state, Path(out, "checkpoint"))
    loaded = _adapter(state)
    batches = [_micro_batch(given, pack) for pack in PACKS]
    again: StepResult = train_step(state, batches, _weighted_loss, tokens())
    later = train_step(state, batches, _weighted_loss, tokens())
    return {
        "extra": extra,
        "checksum": checksum,
        "same": saved.keys() == loaded.keys() and all(torch.equal(loaded[name], saved[name]) for name in saved),
        "tensors": len(saved),
        "merged": merged,
        "loss": abs(again.loss - going_on.loss),
        "grad_norm": abs(again.grad_norm - going_on.grad_norm),
        "later": later.loss - again.loss,
    }


def _adapter(state: TrainState) -> Tensors:
    return {
        name: tensor.clone() for name, tensor in stream_adapter(state.policies, torch.float32) if tensor is not None
    }


def _merged_error(base: Path, merged: Path, adapter: Tensors) -> float:
    """The largest distance of the export from base + alpha / rank · B A in fp64, of all tensors, on every rank."""

    def largest() -> float:
        lora, before, after = validate({"lora": CASES["all"]}).lora, HfFolder(base), HfFolder(merged)
        assert before.names() == after.names()
        worst = 0.0
        for name in before.names():
            expected, found = (folder.read(name, ()).double() for folder in (before, after))
            stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            if f"{stem}A.weight" in adapter:
                a, b = (adapter[f"{stem}{part}.weight"].double() for part in "AB")
                expected = expected + lora.scale_of(name.split(".")[-2]) * b @ a
                assert not torch.equal(expected, before.read(name, ()).double())
            worst = max(worst, float((expected - found).abs().max()))
        return worst

    return float(exchange.from_rank_zero(largest))
