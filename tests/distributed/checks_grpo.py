"""One GRPO batch through the trainer's real update, on this launch's ranks, under several layouts (worker side)."""

from __future__ import annotations

from typing import Any

import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import launch
from megatron_lwz.training.grpo_update import PolicyUpdates, prepare_updates
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.reference import ReferenceWeights
from megatron_lwz.types import SequenceBatch

ARCHITECTURE = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "initializer_range": 0.3,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "token": {"kl_coefficient": 0.1, "kl_estimator": "k3", "entropy_coefficient": 0.01, "clip_high": 0.28},
    "sequence": {"ratio": "sequence", "aggregation": "sequence", "mismatch": "sequence", "mismatch_mode": "mask"},
    "constant": {"aggregation": "constant", "constant_length": 64, "kl_coefficient": 0.1, "kl_placement": "reward"},
}


def updates(layouts: dict[str, dict[str, Any]], *, cap: int = 128) -> dict[str, list[dict[str, float]]]:
    """`layout/option` → metrics of four optimizer updates: two batches with two updates each."""
    found = {}
    for layout, parallel in layouts.items():
        for name, grpo in OPTIONS.items():
            config = validate(
                {
                    "model": {"architecture": ARCHITECTURE, "vocab_padding": 8},
                    "parallel": parallel,
                    "training": {"precision": "fp32", "tokens_per_micro_batch": cap, "updates_per_batch": 2},
                    "optimizer": {"lr": 1e-2},
                    "grpo": grpo,
                }
            )
            found[f"{layout}/{name}"] = _train(config)
    return found


def _train(config: Config) -> list[dict[str, float]]:
    launch.initialize(config)
    state = build_train_state(config)
    reference = ReferenceWeights(state) if config.grpo.kl_coefficient > 0 else None
    rows = []
    for step in range(2):
        updates = PolicyUpdates(state, config)
        updates.add(prepare_updates(state, make_batch(step), config, reference), last=True)
        rows += updates.finish()
    return rows


def make_batch(seed: int) -> SequenceBatch:
    """Twelve sequences of 12 to 60 tokens; one of them masked; behaviour log-probs near a uniform policy's."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(12, 60, (12,), generator=random)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    weights = torch.ones(12)
    weights[5] = 0
    return SequenceBatch(
        tokens=torch.randint(0, 101, (total,), generator=random),
        offsets=offsets,
        prompt_lengths=torch.randint(1, 8, (12,), generator=random),
        behaviour_logprobs=-4.6 + 0.3 * torch.randn(total, generator=random),
        advantages=torch.randn(12, generator=random),
        weights=weights,
    )
