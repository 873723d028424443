"""Computes one step of a GRPO run again, from the checkpoint before it and the journal. Changes nothing in the run.

The steps between that checkpoint and the wanted one are trained again in memory. Under the run's layout, on a CPU, loss and
gradient norm are those of the run bit for bit, unless `training.accumulate_groups` cut the batch into parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist

from megatron_lwz.config import Config
from megatron_lwz.distributed import exchange, groups, launch, platform
from megatron_lwz.errors import CheckpointError, DamagedCheckpoint, DataError
from megatron_lwz.metrics import read_metrics, write_json
from megatron_lwz.orchestrator.experience import make_batch, rollout_ids
from megatron_lwz.rewards.composite import component_sections
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.run_paths import STEPS, RunPaths, step_name, step_of
from megatron_lwz.training.checkpoint import load_checkpoint
from megatron_lwz.training.grpo_batches import Update, prepare_updates
from megatron_lwz.training.grpo_objective import GrpoObjective
from megatron_lwz.training.grpo_update import PolicyUpdates, mean_metrics
from megatron_lwz.training.numerics_guard import NumericsGuard
from megatron_lwz.training.reference import first_state
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import forward_statistics
from megatron_lwz.types import SequenceBatch

_COLUMNS = ("loss", "tokens", "mismatch")


@dataclass(frozen=True)
class Share:
    """What one rollout adds to the step, at the weights before it.

    `loss` is its part of the step's loss; all parts add up to it, except with several updates per batch: then to the mean
    over the updates, had the weights not moved between them. `mismatch` is the mean |log old − log behaviour| in nats
    per token, `largest` the largest.
    """

    rollout: str
    loss: float
    tokens: int
    mismatch: float
    largest: float

    def badness(self) -> tuple[bool, float]:
        """Returns the key by which the worst rollout comes last: what is not finite, then the size of its loss."""
        sound = math.isfinite(self.loss) and math.isfinite(self.mismatch)
        return not sound, abs(self.loss) if sound else 0.0


@dataclass(frozen=True)
class Replayed:
    """A step, computed again. `recorded` is its row of metrics.jsonl, {} if the run wrote none.

    `begun`: the step of the checkpoint from which the replay went on, 0 for the first weights.
    """

    step: int
    begun: int
    metrics: dict[str, float]
    recorded: dict[str, float]
    shares: list[Share]

    def same(self, name: str) -> bool | None:
        """Whether a metric is that of the run, bit for bit; None if the run has none. What is not finite is alike."""
        if name not in self.recorded:
            return None
        mine, its = self.metrics[name], self.recorded[name]
        return mine == its or not (math.isfinite(mine) or math.isfinite(its))


def replay(config: Config, run: RunPaths, step: int, repro: Path | None = None) -> Replayed:
    """Replays step `step` of the run, whose settings are `config`; writes a repro file into the folder `repro`.

    All ranks call it, under the layout of `config`. Raises LwzError.
    """
    launch.initialize(config)
    recorded = exchange.from_rank_zero(lambda: _recorded(run, step))
    batch, names = _stored(config, run, step)
    state, reference = first_state(config)
    guard = NumericsGuard(config, _restore_before(state, run, step).get("guard"))
    begun = state.step
    while state.step < step - 1:
        earlier, earlier_names = _stored(config, run, state.step + 1)
        _train(state, guard, prepare_updates(state, earlier, config, reference, earlier_names))
        guard.forget()
        state.step += 1
    updates = prepare_updates(state, batch, config, reference, names)
    shares = _shares(state, updates)
    metrics = _train(state, guard, updates)
    replayed = Replayed(step, begun, metrics, recorded, shares)
    if repro is not None:
        exchange.from_rank_zero(lambda: _write(repro, replayed, config, run, batch, names))
    return replayed


def _recorded(run: RunPaths, step: int) -> dict[str, float]:
    rows = read_metrics(run.metrics) if run.metrics.exists() else []
    return next((row for row in rows if row["step"] == step), {})


def _restore_before(state: TrainState, run: RunPaths, step: int) -> Mapping[str, Any]:
    """Loads the newest whole checkpoint before `step`; returns its `extra`. Without one the first weights stay."""
    names = exchange.from_rank_zero(
        lambda: sorted(path.name for path in run.checkpoints.glob(STEPS) if step_of(path.name) < step)
    )
    for name in reversed(names):
        try:
            return load_checkpoint(state, run.checkpoints / name)
        except DamagedCheckpoint as error:
            fault = error.fault
    if names:
        raise CheckpointError(run.checkpoints, f"no checkpoint before step {step} is whole ({fault})")
    return {}


def _stored(config: Config, run: RunPaths, step: int) -> tuple[SequenceBatch, list[str]]:
    """Returns the batch that `step` trained on, and the ids of its sequences, on every rank."""
    batch: SequenceBatch | None = None

    def read() -> list[str]:
        nonlocal batch
        with JournalReader(run.journal) as journal:
            found = {group.id: group for group in journal.groups(consumed_at=step)}
            order = journal.trained_order(step) or sorted(found)
        if not found or set(order) != set(found):
            raise DataError(run.journal, f"does not hold all that step {step} trained on")
        trained = [found[group] for group in order]
        batch = make_batch(trained, config, names=list(component_sections(config.reward)), step=step)
        return rollout_ids(trained)

    names = exchange.from_rank_zero(read)
    tensors = exchange.broadcast_tensors(vars(batch) if batch is not None else None)
    return SequenceBatch(**tensors) if batch is None else batch, names


def _train(state: TrainState, guard: NumericsGuard, updates: Sequence[Update]) -> dict[str, float]:
    run = PolicyUpdates(state, state.config, guard)
    run.add(updates, last=True)
    return mean_metrics(run.finish())


def _shares(state: TrainState, updates: Sequence[Update]) -> list[Share]:
    """Returns every rollout that has a weight in the loss, on every rank alike. Collective."""
    found = []
    for update in updates:
        sums, largest = _sums(state, update)
        for name, (loss, tokens, mismatch), most in zip(update.rollouts, sums.tolist(), largest.tolist(), strict=True):
            share = loss / max(1, update.denominator) / len(updates)
            found.append(Share(name, share, int(tokens), mismatch / max(1.0, tokens), most))
    return found


def _sums(state: TrainState, update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns, per sequence, sums of _COLUMNS [N, 3] and the largest mismatch [N], both fp64."""
    sums = torch.zeros(update.sequences, len(_COLUMNS), dtype=torch.float64, device=platform.device())
    largest = sums.new_zeros(update.sequences)
    objective = GrpoObjective(state.config.grpo, update.sequences, update.old, update.reference)
    statistics = forward_statistics(state, update.micro_batches)
    for index, values in enumerate(statistics or ()):
        losses, mismatch, ids = objective.token_losses(values, update.micro_batches[index], index)
        sums.index_add_(0, ids, torch.stack([losses, torch.ones_like(losses), mismatch], 1).double())
        largest.scatter_reduce_(0, ids, mismatch.double(), "amax")
    if statistics is not None:
        dist.all_reduce(sums, group=groups.data_context_group())
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.data_context_group())
    tensors = exchange.broadcast_tensors({"sums": sums, "largest": largest}, source=dist.get_world_size() - 1)
    return tensors["sums"], tensors["largest"]


def _write(
    folder: Path, replayed: Replayed, config: Config, run: RunPaths, batch: SequenceBatch, names: Sequence[str]
) -> None:
    """Writes the step's batch as tensors, and everything else about it as JSON, under the step's name."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / step_name(replayed.step)
    safetensors.torch.save_file(
        {name: t.contiguous() for name, t in vars(batch).items()}, stem.with_suffix(".safetensors")
    )
    begun = str(run.checkpoint(replayed.begun)) if replayed.begun else None
    record = {
        "step": replayed.step,
        "run": str(run.root),
        "checkpoint": begun,
        "trained_since": list(range(replayed.begun + 1, replayed.step)),
        "ranks": dist.get_world_size(),
        "rollouts": list(names),
        "metrics": _json(replayed.metrics),
        "recorded": _json(replayed.recorded),
        "shares": [_json(asdict(share)) for share in replayed.shares],
        "config": config.model_dump(mode="json"),
    }
    write_json(stem.with_suffix(".json"), record)


def _json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row with numbers that JSON lacks as text: nan, inf, -inf."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
