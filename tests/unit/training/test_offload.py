"""A trainer that left its memory between two steps trains on as if it had not."""

from collections.abc import Iterator

import pytest
import torch

from megatron_lwz.config import Config
from megatron_lwz.distributed import launch
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.offload import TrainerMemory
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step import train_step
from tests.support.tiny_step import TOKENS, config_of, loss, micro_batch


@pytest.fixture
def groups() -> Iterator[None]:
    yield
    launch.shutdown()


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
    config = config_of(precision, distributed=distributed)
    losses, weights = trained(config, leaving=False)
    launch.shutdown()
    again, others = trained(config, leaving=True)
    assert losses == again and losses[2] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
