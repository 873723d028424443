"""The policy that a GRPO run begins with, and the frozen model of the KL term: a copy of it, or a teacher.

The copy lies in host memory and is swapped into the model for a forward pass. That of a policy with LoRA is its frozen
base, without a copy: its adapters are switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from megatron_lwz.config import Config
from megatron_lwz.config.sections import TeacherServer
from megatron_lwz.distributed import platform
from megatron_lwz.distributed.host_arena import HostArena
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.lora import switch
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.served_teacher import ServedTeacher
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.teacher import load_teacher


class Reference(Protocol):
    """The frozen model of the KL term."""

    def at_work(self, state: TrainState) -> AbstractContextManager[Sequence[PolicyModel]]:
        """Gives this rank's chunks of the frozen model. Inside the block the policy of `state` must not be used."""
        ...


class ReferenceWeights:
    """This rank's weights at construction, copied once to host memory (pinned on a GPU machine); with LoRA the base.

    Build it before a checkpoint is loaded into the state: the reference is the run's starting point. It needs twice the
    rank's weights in host memory: the copy, and room for the policy while the reference is swapped in. A base needs none.
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

    @contextmanager
    def at_work(self, state: TrainState) -> Iterator[Sequence[PolicyModel]]:
        """Inside the block the policy's chunks compute with the reference's weights; afterwards with their own again."""
        self.swap_in(state)
        try:
            yield state.policies
        finally:
            self.swap_out(state)

    @torch.no_grad()
    def swap_in(self, state: TrainState) -> None:
        """Moves the policy's weights to host memory and puts the reference's weights in their place."""
        for parameter, parked, reference in zip(_parameters(state), self._parked, self._reference, strict=True):
            parked.copy_(parameter)
            parameter.copy_(reference)
        switch(state.policies, on=False)

    @torch.no_grad()
    def swap_out(self, state: TrainState) -> None:
        """Puts the policy's weights back, bit for bit."""
        for parameter, parked in zip(_parameters(state), self._parked, strict=True):
            parameter.copy_(parked)
        switch(state.policies, on=True)


Frozen = Reference | ServedTeacher
"""What gives the log-probs of the KL term."""


def first_state(config: Config) -> tuple[TrainState, Frozen | None]:
    """Builds the state that a GRPO run begins with, and the frozen model if the KL term needs one. Collective."""
    state = build_train_state(config)
    for policy in state.policies:
        policy.temperature = config.rollout.temperature  # log-probs of the distribution the engines sample from
    return state, frozen_model(state)


def frozen_model(
    state: TrainState,
    teacher: Callable[[Config], Reference] = load_teacher,
    served: Callable[[TeacherServer], ServedTeacher] = ServedTeacher,
) -> Frozen | None:
    """Returns the frozen model of the KL term; None without that term. Collective.

    `teacher` makes a config's teacher, `served` that of a server.
    """
    grpo = state.config.grpo
    if grpo.kl_coefficient == 0:
        return None
    if grpo.teacher_server.url is not None:
        return served(grpo.teacher_server)
    return ReferenceWeights(state) if grpo.teacher is None else teacher(state.config)


def _parameters(state: TrainState) -> list[torch.nn.Parameter]:
    """Returns what has to be copied: nothing below an adapter ever changes."""
    if state.config.adapter() is not None:
        return []
    return [parameter for policy in state.policies for parameter in policy.parameters()]
