"""Frees the trainer's GPU memory while engines generate on the same GPU, and restores it afterwards.

Megatron-Core 0.16's own `offload_to_cpu` gives the optimizer's parameters new memory. Under the distributed optimizer,
fp32 parameters are views of the model's weights, and after that call the model's weights would no longer be updated.
Here memory is freed and allocated again in place.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_lwz.distributed import platform
from megatron_lwz.distributed.parking import Parked
from megatron_lwz.training.optimizer import parts
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.state_bytes import gradients


class TrainerMemory:
    """This rank's weights, optimizer state and gradients. Gradients are not kept: they are 0 after `come_back`."""

    def __init__(self, state: TrainState) -> None:
        self._state = state
        self._known: list[int] = []
        self._kept = Parked(())
        self._gradients = Parked(gradients(state), keep=False)

    @property
    def nbytes(self) -> int:
        """Number of bytes that `leave` frees."""
        return self._kept.nbytes + self._gradients.nbytes

    def leave(self) -> None:
        """Frees the memory, also for other processes.

        Call it between two steps. Do not train or save before `come_back`.
        """
        tensors = list(_kept(self._state))
        known = [tensor.untyped_storage()._cdata for tensor in tensors]
        if known != self._known:  # fused optimizers create their state at the first step
            self._known, self._kept = known, Parked(tensors)
        if platform.has_gpu():
            torch.cuda.synchronize()
        self._gradients.out()
        self._kept.out()
        if platform.has_gpu():
            torch.cuda.empty_cache()

    def come_back(self) -> None:
        """Allocates the memory again and restores the weights and the optimizer state."""
        self._kept.back()
        self._gradients.back()


def _kept(state: TrainState) -> Iterator[Tensor]:
    for chunk in state.chunks:
        yield from chunk.module.parameters()
    for part in parts(state.optimizer):
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for entry in part.optimizer.state.values():
            yield from (value for value in entry.values() if isinstance(value, Tensor) and value.is_floating_point())
