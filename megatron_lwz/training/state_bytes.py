"""How many bytes the state of a stage takes on this rank, by part. The same code counts real and fake tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from megatron_lwz.training.optimizer import parts
from megatron_lwz.training.state import TrainState


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the memory that stays allocated from step to step; padding of buffers included, activations not."""

    parameters: int
    gradients: int
    optimizer: int
    """fp32 masters and Adam's moments. Masters of fp32 parameters are the parameters themselves, and not counted again."""

    @property
    def total(self) -> int:
        """All three."""
        return self.parameters + self.gradients + self.optimizer


def state_bytes(state: TrainState) -> StateBytes:
    """Returns what this rank holds once the optimizer is primed. Memory that several tensors share counts once."""
    seen: set[int] = set()
    return StateBytes(
        _new_bytes(_parameters(state), seen), _new_bytes(gradients(state), seen), _new_bytes(_optimizer(state), seen)
    )


def gradients(state: TrainState) -> Iterator[Tensor]:
    """Yields the gradient buffers."""
    for chunk in state.chunks:
        for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]:
            yield buffer.grad_data


def _parameters(state: TrainState) -> Iterator[Tensor]:
    for chunk in state.chunks:
        yield from chunk.module.parameters()


def _optimizer(state: TrainState) -> Iterator[Tensor]:
    for part in parts(state.optimizer):
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for entry in part.optimizer.state.values():
            yield from (value for name, value in entry.items() if name != "step" and isinstance(value, Tensor))


def _new_bytes(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Returns the bytes behind tensors whose memory is not in `seen` yet, and adds them to it."""
    storages = {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    found = sum(size for key, size in storages.items() if key not in seen)
    seen.update(storages)
    return found
