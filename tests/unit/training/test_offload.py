"""A trainer that left its memory between two steps trains on as if it had not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import launch
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.offload import TrainerMemory
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import train_step
from megatron_lwz.types import MicroBatch

TOKENS = 24


@pytest.fixture
def groups() -> Iterator[None]:
    yield
    launch.shutdown()


def config_with(precision: str, distributed: bool) -> Config:
    architecture = {
        "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64,
    }  # fmt: skip
    return validate(
        {
            "model": {"architecture": architecture},
            "training": {"precision": precision},
            "parallel": {"distributed_optimizer": distributed},
            "optimizer": {"lr": 1e-2},
        }
    )


def micro_batch() -> MicroBatch:
    tokens = torch.arange(TOKENS) % 64
    return MicroBatch(
        tokens=tokens,
        labels=tokens.roll(-1),
        positions=torch.arange(TOKENS),
        cu_seqlens=torch.tensor([0, TOKENS], dtype=torch.int32),
        max_seqlen=TOKENS,
        sequence_ids=torch.zeros(TOKENS, dtype=torch.int64),
        source=torch.full((TOKENS,), -1),
        behaviour_logprobs=torch.zeros(TOKENS),
        advantages=torch.zeros(TOKENS),
        weights=torch.ones(TOKENS),
    )


def loss(statistics: torch.Tensor, batch: MicroBatch, _: int) -> tuple[torch.Tensor, dict[str, Any]]:
    return -(statistics[0] * batch.weights).sum(), {}


def trained(config: Config, *, leaving: bool) -> tuple[list[float], list[torch.Tensor]]:
    launch.initialize(config)
    state: TrainState = build_train_state(config)
    memory = TrainerMemory(state) if leaving else None
    losses = []
    for step in range(3):
        losses.append(train_step(state, [micro_batch()], loss, TOKENS).loss)
        state.step = step + 1
        if memory is not None:
            assert_leaves(memory, state)
    return losses, [parameter.detach().clone() for policy in state.policies for parameter in policy.parameters()]


def assert_leaves(memory: TrainerMemory, state: TrainState) -> None:
    parameters = [parameter for policy in state.policies for parameter in policy.parameters()]
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    memory.leave()
    assert memory.nbytes > 3 * size  # weights, gradients, two moments at least
    assert all(parameter.untyped_storage().nbytes() == 0 for parameter in parameters)
    assert all(buffer.grad_data.untyped_storage().nbytes() == 0 for chunk in state.chunks for buffer in chunk.buffers)
    memory.come_back()


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_goes_on_bit_for_bit(groups: None, precision: str, distributed: bool) -> None:
    config = config_with(precision, distributed)
    losses, weights = trained(config, leaving=False)
    launch.shutdown()
    again, others = trained(config, leaving=True)
    assert losses == again and losses[2] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
