"""A model of one small layer in training, for tests of what is saved of it."""

from __future__ import annotations

import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import launch
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.optimizer import parts
from megatron_lwz.training.state import TrainState

MODEL = {
    "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 24,
}  # fmt: skip


def config_of(*, asynchronous: bool = True, precision: str = "fp32", distributed_optimizer: bool = True) -> Config:
    return validate(
        {
            "model": {"architecture": MODEL, "vocab_padding": 8},
            "training": {"precision": precision},
            "parallel": {"distributed_optimizer": distributed_optimizer},
            "checkpoint": {"keep": 2, "asynchronous": asynchronous},
        }
    )


def state_of(config: Config) -> TrainState:
    launch.initialize(config)
    return build_train_state(config)


def live_tensors(state: TrainState) -> list[torch.Tensor]:
    """Weights, masters and moments: all that a step changes in place."""
    optimizer = [part.optimizer for part in parts(state.optimizer)]
    masters = [p.data for one in optimizer for group in one.param_groups for p in group["params"]]
    moments = [value for one in optimizer for entry in one.state.values() for _, value in sorted(entry.items())]
    return [tensor.data for policy in state.policies for tensor in policy.parameters()] + masters + moments
