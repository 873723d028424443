"""A tiny policy in training, and micro-batches for its steps: for tests of what a step does besides the loss."""

from __future__ import annotations

from typing import Any

import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.types import MicroBatch

TOKENS, VOCABULARY, LAYERS = 24, 64, 2


def config_of(precision: str = "fp32", *, distributed: bool = True) -> Config:
    architecture = {
        "num_hidden_layers": LAYERS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
    }
    return validate(
        {
            "model": {"architecture": architecture},
            "training": {"precision": precision},
            "parallel": {"distributed_optimizer": distributed},
            "optimizer": {"lr": 1e-2},
        }
    )


def micro_batch(shift: int = 0, tokens: int = TOKENS) -> MicroBatch:
    """One document; the first token is `shift`."""
    return _of((torch.arange(tokens) + shift) % VOCABULARY)


def _of(tokens: torch.Tensor) -> MicroBatch:
    count = len(tokens)
    return MicroBatch(
        tokens=tokens,
        labels=tokens.roll(-1),
        positions=torch.arange(count),
        cu_seqlens=torch.tensor([0, count], dtype=torch.int32),
        max_seqlen=count,
        sequence_ids=torch.zeros(count, dtype=torch.int64),
        source=torch.full((count,), -1),
        behaviour_logprobs=torch.zeros(count),
        advantages=torch.zeros(count),
        weights=torch.ones(count),
    )


def loss(statistics: torch.Tensor, batch: MicroBatch, _: int) -> tuple[torch.Tensor, dict[str, Any]]:
    return -(statistics[0] * batch.weights).sum(), {}
