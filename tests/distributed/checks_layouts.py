"""Worker side of `test_layouts`: runs on every rank and returns measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import exchange, groups
from megatron_lwz.distributed.context_parallel import shard_indices
from megatron_lwz.distributed.launch import initialize
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.step import forward_chunks, train_step
from megatron_lwz.training.teacher import load_teacher
from megatron_lwz.types import IGNORED_LABEL, MicroBatch
from tests.distributed.checks_grpo import loss_functions
from tests.support.layout_oracle import LEARNING_RATE, LONGEST_TRAINED, packs_of

Oracle = dict[str, torch.Tensor]


def measure(
    folders: dict[str, str], layouts: dict[str, dict[str, Any]], some: dict[str, list[str]], losses: list[str]
) -> dict[str, Any]:
    """Per `model layout` the distances from the oracle, and `exchange`; `loss_functions` under the layouts `losses`.

    Layouts hold config sections; a model in `some` runs under the layouts named there alone.
    """
    results: dict[str, Any] = {}
    for model, folder in folders.items():
        oracle = load_file(Path(folder) / "oracle.tensors")
        for name, layout in layouts.items():
            if name not in some.get(model, [name]):
                continue
            results[f"{model} {name}"] = _measure_one(_config(folder, layout), oracle, model)
    teachers = {name: layouts[name] for name in some["qwen3"] if name in layouts}
    results["teacher"] = {name: _teacher_error(folders, layout) for name, layout in teachers.items()}
    results["loss_functions"] = loss_functions({name: layouts[name]["parallel"] for name in losses})
    return results | {"exchange": _measure_exchange()}


def _config(folder: str, layout: dict[str, Any]) -> Config:
    optimizer = {"lr": LEARNING_RATE, "weight_decay": 0.0, "clip_grad": 1.0}
    training = {"precision": "fp32"} | layout.get("training", {})
    return validate(
        {"model": {"hf": folder}, "optimizer": optimizer, "parallel": layout["parallel"], "training": training}
    )


def _measure_one(config: Config, oracle: Oracle, model: str) -> dict[str, float]:
    packs, trained = packs_of(model), packs_of(model, LONGEST_TRAINED)
    initialize(config)
    state = build_train_state(config)
    values = _statistics(state.chunks, [_micro_batch(oracle, pack) for pack in packs], oracle)
    changed = dict(oracle)
    changed["tokens.1"] = (oracle["tokens.1"] + 1) % 1003
    others = _statistics(state.chunks, [_micro_batch(changed, pack) for pack in packs[:2]], oracle)
    mine = [_micro_batch(oracle, pack) for pack in trained[groups.data_rank() :: groups.data_size()]]
    tokens = sum(oracle[f"weights.{sequence}"].numel() for pack in trained for sequence in pack)
    steps = [train_step(state, mine, _weighted_loss, tokens) for _ in range(2)]
    return {
        "logprob": max((_distance(values[i][0], oracle[f"logprob.{i}"]) for i in values), default=0.0),
        "entropy": max((_distance(values[i][1], oracle[f"entropy.{i}"]) for i in values), default=0.0),
        "sequences": len(values),
        "leak": max((_distance(others[i], values[i]) for i in others if i != 1), default=0.0),
        "changed": _distance(others[1], values[1]) if values else 1.0,
        "loss": max(abs(s.loss - float(r)) for s, r in zip(steps, oracle["loss"], strict=True)),
        "grad_norm": max(abs(s.grad_norm / float(r) - 1) for s, r in zip(steps, oracle["grad_norm"], strict=True)),
    }


def _teacher_error(folders: dict[str, str], layout: dict[str, Any]) -> float:
    """The Qwen3 as the teacher of the untied Qwen2.5: the largest distance of its log-probs from transformers'."""
    config = _config(folders["untied"], layout)
    grpo = config.grpo.model_copy(update={"teacher": folders["qwen3"], "kl_coefficient": 1.0})
    rollout = config.rollout.model_copy(update={"temperature": 1.0})
    config = config.model_copy(update={"grpo": grpo, "rollout": rollout})
    initialize(config)
    state, oracle = build_train_state(config), load_file(Path(folders["qwen3"]) / "oracle.tensors")
    packs = packs_of("qwen3")
    micro_batches = [_micro_batch(oracle, pack) for pack in packs]
    with load_teacher(config).at_work(state) as teacher:
        found = _statistics(teacher, micro_batches, oracle)
    return max((_distance(values[0], oracle[f"logprob.{index}"]) for index, values in found.items()), default=0.0)


def _weighted_loss(
    statistics: torch.Tensor, micro_batch: MicroBatch, _: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return -(statistics[0] * micro_batch.weights).sum(), {}


def _statistics(
    chunks: Sequence[torch.nn.Module], micro_batches: list[MicroBatch], oracle: Oracle
) -> dict[int, torch.Tensor]:
    """[2, length − 1] log-probs and entropies per sequence on the last stage; nothing on the others."""
    results = forward_chunks(chunks, micro_batches)
    values: dict[int, torch.Tensor] = {}
    for statistics, micro_batch in zip(results or (), micro_batches, strict=results is not None):
        for sequence in sorted(set(micro_batch.sequence_ids.tolist()) - {-1}):
            whole = torch.zeros(2, oracle[f"weights.{sequence}"].numel())
            mine = micro_batch.sequence_ids == sequence
            whole[:, micro_batch.positions[mine]] = statistics[:2, mine]
            dist.all_reduce(whole, group=groups.context_group())
            values[sequence] = whole
    return values


def _micro_batch(oracle: Oracle, sequences: list[int]) -> MicroBatch:
    """Packs `sequences`, every segment padded to 2·CP, one more segment up to TP, and takes this rank's share."""
    multiple = 2 * groups.context_size() if groups.context_size() > 1 else 1
    columns: dict[str, list[torch.Tensor]] = {"tokens": [], "labels": [], "positions": [], "ids": [], "weights": []}
    lengths = []

    def add(tokens: torch.Tensor, weights: torch.Tensor, sequence: int, padding: int) -> None:
        count = weights.numel()
        lengths.append(count + padding)
        columns["tokens"] += [tokens[:count], torch.zeros(padding, dtype=torch.int64)]
        columns["labels"] += [tokens[1:], torch.full((padding,), IGNORED_LABEL)]
        columns["positions"] += [torch.arange(count + padding)]
        columns["ids"] += [torch.full((count,), sequence), torch.full((padding,), -1)]
        columns["weights"] += [weights, torch.zeros(padding)]

    for sequence in sequences:
        weights = oracle[f"weights.{sequence}"]
        add(oracle[f"tokens.{sequence}"], weights, sequence, -weights.numel() % multiple)
    rest = -sum(lengths) % (multiple * groups.tensor_size())
    if rest:
        add(torch.zeros(0, dtype=torch.int64), torch.zeros(0), -1, rest)
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    share = shard_indices(starts, groups.context_size(), groups.context_rank())
    flat = {name: torch.cat(pieces)[share] for name, pieces in columns.items()}
    nothing = torch.zeros(share.numel())
    return MicroBatch(
        tokens=flat["tokens"],
        labels=flat["labels"],
        positions=flat["positions"],
        cu_seqlens=starts,
        max_seqlen=max(lengths),
        sequence_ids=flat["ids"],
        source=torch.full((share.numel(),), -1),
        behaviour_logprobs=nothing,
        advantages=nothing,
        weights=flat["weights"],
    )


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def _measure_exchange() -> dict[str, Any]:
    """What every rank holds after broadcasts and posts from the last rank."""
    source = dist.get_world_size() - 1
    mine = dist.get_rank() == source
    sent = {
        "flags": torch.tensor([True, False]),
        "half": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "scalar": torch.tensor(2**40),
        "empty": torch.zeros(0, 4),
    }
    exchange.PIECE_BYTES = 5  # several pieces per tensor, cut inside numbers
    got = exchange.broadcast_tensors(sent if mine else None, source=source)
    if mine:
        exchange.post("check/1")
    exchange.wait_until_posted("check/1", 20.0)
    try:
        exchange.wait_until_posted("check/never", 0.2)
        waited = ""
    except TimeoutError as error:
        waited = str(error)
    same = all(torch.equal(got[name], sent[name]) and got[name].dtype == sent[name].dtype for name in sent)
    return {
        "same": same,
        "names": list(got),
        "json": exchange.broadcast_json({"é": [1, None]} if mine else None, source=source),
        "waited": waited,
    }
