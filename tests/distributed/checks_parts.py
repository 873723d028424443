"""Worker side of test_parts: a step whose batch comes in parts against one whose batch comes whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.config.load import load_config
from megatron_lwz.distributed import groups, launch
from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.training import grpo
from megatron_lwz.training.grpo_batches import prepare_updates, select
from megatron_lwz.training.grpo_update import PolicyUpdates
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.profiler import Profiler
from megatron_lwz.training.reference import ReferenceWeights
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import StepResult
from megatron_lwz.types import Prompt, Rollout, SequenceBatch
from tests.distributed.checks_grpo import ARCHITECTURE, OPTIONS, THROUGH_THE_MEAN, gradients_of, make_batch

PARTS = (range(5), range(5, 6), range(6, 12))
"""Sequences of each part; the one of the second has weight 0."""


def tokens_written(prompt: Prompt, rollouts: Sequence[Rollout]) -> list[float]:
    """A reward that differs in a group."""
    return [float(len(rollout.tokens)) for rollout in rollouts]


def compare(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """`option layout` → the largest differences between one part and three, over two steps, and whether gradients there are.

    `cases` gives each its `parallel` section.
    """
    found = {}
    for name, parallel in cases.items():
        config = validate(
            {
                "model": {"architecture": ARCHITECTURE, "vocab_padding": 8},
                "parallel": parallel,
                "training": {"precision": "fp32", "tokens_per_micro_batch": 128},
                "optimizer": {"lr": 1e-2},
                "grpo": (OPTIONS | {"function": THROUGH_THE_MEAN})[name.split()[0]],
            }
        )
        found[name] = _compare(config)
    return found


def compare_and_train_early(cases: dict[str, dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """Both checks in one launch."""
    return {"compare": compare(cases), "early": early(**arguments)}


def _compare(config: Config) -> dict[str, float]:
    launch.initialize(config)
    state = build_train_state(config)
    reference = ReferenceWeights(state) if config.grpo.kl_coefficient > 0 else None
    found = {"gradient": 0.0, "norm": 0.0, "loss": 0.0, "metrics": 0.0, "smallest": torch.inf}
    for step in range(2):
        batch = make_batch(step)
        whole, gradients = _gradients(state, [batch], config, reference)
        split, others = _gradients(state, [select(batch, part) for part in PARTS], config, reference)
        scale = max(float(gradient.abs().max()) for gradient in gradients)
        difference = max(float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True))
        found["gradient"] = max(found["gradient"], difference / scale)
        found["smallest"] = min(found["smallest"], scale)
        found["norm"] = max(found["norm"], abs(split.grad_norm / whole.grad_norm - 1))
        found["loss"] = max(found["loss"], abs(split.loss - whole.loss))
        assert split.metrics.keys() == whole.metrics.keys() and split.lr == whole.lr
        relative = (abs(split.metrics[key] - value) / (1 + abs(value)) for key, value in whole.metrics.items())
        found["metrics"] = max(found["metrics"], *relative)
        updates = PolicyUpdates(state, config)  # the weights move, from parts
        for number, part in enumerate(PARTS):
            updates.add(prepare_updates(state, select(batch, part), config, reference), last=number == len(PARTS) - 1)
        (row,) = updates.finish()
        found["norm"] = max(found["norm"], abs(row["grad_norm"] / whole.grad_norm - 1))
        state.step += 1
    return found


def _gradients(
    state: TrainState, batches: Sequence[SequenceBatch], config: Config, reference: ReferenceWeights | None
) -> tuple[StepResult, list[torch.Tensor]]:
    """A step that is refused at its end, and the reduced, divided gradients that it had: this rank's shards."""
    updates = (update for batch in batches for update in prepare_updates(state, batch, config, reference))
    return gradients_of(state, updates, config, last=len(batches) == 1)


class _Silent:
    def step(self, step: int, metrics: Any) -> None:
        pass

    def phase(self, name: str) -> None:
        pass

    def waiting(self, progress: Any) -> None:
        pass


def early(config: str, trained: str, runs: dict[str, list[str]]) -> dict[str, Any]:
    """Trains the same config into several folders; tells `trained` when the first run has trained on its first part."""
    add = PolicyUpdates.add

    def tell(self: PolicyUpdates, updates: Any, *, last: bool) -> None:
        add(self, updates, last=last)
        calls.append(last)
        if groups.is_rank_zero():
            Path(trained).touch()

    PolicyUpdates.add = tell
    found: dict[str, Any] = {}
    for name, overrides in runs.items():
        calls: list[bool] = []
        run = grpo.train(load_config(Path(config), overrides), _Silent(), Profiler()).root
        with JournalReader(run / "journal.sqlite") as journal:
            consumed = journal.consumed()
        found[name] = {"rows": read_metrics(run / "metrics.jsonl"), "consumed": consumed, "parts": calls}
    PolicyUpdates.add = add
    return found
