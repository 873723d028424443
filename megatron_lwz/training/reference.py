"""The policy that a GRPO run begins with, and its frozen copy in host memory for the KL term.

The copy is swapped into the model for a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_lwz.config import Config
from megatron_lwz.distributed import platform
from megatron_lwz.distributed.host_arena import HostArena
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.state import TrainState


class ReferenceWeights:
    """This rank's weights at construction, copied once to host memory (pinned on a GPU machine).

    Build it before a checkpoint is loaded into the state: the reference is the run's starting point. It needs twice the
    rank's weights in host memory: the copy, and room for the policy while the reference is swapped in.
    """

    def __init__(self, state: TrainState) -> None:
        parameters = _parameters(state)
        sizes = [parameter.nbytes for parameter in parameters]
        self.arena = HostArena(2 * sizes, pinned=platform.has_gpu())
        tensors = [
            memory.view(parameter.dtype).view(parameter.shape)
            for memory, parameter in zip(self.arena.tensors, 2 * parameters, strict=True)
        ]
        self._reference, self._parked = tensors[: len(parameters)], tensors[len(parameters) :]
        for reference, parameter in zip(self._reference, parameters, strict=True):
            reference.copy_(parameter.detach())

    @torch.no_grad()
    def swap_in(self, state: TrainState) -> None:
        """Moves the policy's weights to host memory and puts the reference's weights in their place."""
        for parameter, parked, reference in zip(_parameters(state), self._parked, self._reference, strict=True):
            parked.copy_(parameter)
            parameter.copy_(reference)

    @torch.no_grad()
    def swap_out(self, state: TrainState) -> None:
        """Puts the policy's weights back, bit for bit."""
        for parameter, parked in zip(_parameters(state), self._parked, strict=True):
            parameter.copy_(parked)


def first_state(config: Config) -> tuple[TrainState, ReferenceWeights | None]:
    """Builds the state that a GRPO run begins with, and its reference weights if the KL term needs them. Collective."""
    state = build_train_state(config)
    for policy in state.policies:
        policy.temperature = config.rollout.temperature  # log-probs of the distribution the engines sample from
    return state, ReferenceWeights(state) if config.grpo.kl_coefficient > 0 else None


@contextmanager
def with_weights(state: TrainState, reference: ReferenceWeights) -> Iterator[None]:
    """Inside the block the model computes with the reference's weights; afterwards with its own again."""
    reference.swap_in(state)
    try:
        yield
    finally:
        reference.swap_out(state)


def _parameters(state: TrainState) -> list[torch.nn.Parameter]:
    return [parameter for policy in state.policies for parameter in policy.parameters()]
