"""Compares the weights of a policy with those of a Hugging Face folder, value by value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from megatron_lwz.distributed import exchange, groups
from megatron_lwz.models.hf.export import stream_policy
from megatron_lwz.models.hf.folder import HfFolder
from megatron_lwz.models.hf.name_map import tensor_shapes, unwrap

_WIDTHS = (torch.float32, torch.float16, torch.bfloat16)
"""From the most precise to the least precise."""


@dataclass(frozen=True)
class Difference:
    """A tensor whose values differ. `place` is the index of the largest difference, with both values there."""

    name: str
    differing: int
    values: int
    place: tuple[int, ...]
    ours: float
    theirs: float

    @property
    def size(self) -> float:
        """The largest difference. Infinite if a value is not a number."""
        size = abs(self.ours - self.theirs)
        return size if size == size else inf

    def __str__(self) -> str:
        found = f"{self.differing} of the {self.values} values of {self.name} differ"
        return f"{found}, most at {list(self.place)}: {self.ours:g}, not {self.theirs:g}"


@dataclass(frozen=True)
class WeightComparison:
    """How many tensors and values were compared, how many tensors differ, and the tensor that differs most."""

    tensors: int
    values: int
    differing: int
    worst: Difference | None


def compare_weights(chunks: Sequence[torch.nn.Module], folder: HfFolder, dtype: torch.dtype) -> WeightComparison:
    """Compares every tensor of the policy with the folder's. Collective; every rank gets the result.

    `dtype` is the type in which the policy's values were stored. Where the folder has another type, both are compared in
    the less precise of the two. Padding rows are not compared: the folder has none.
    """
    shapes = tensor_shapes(unwrap(chunks[0]).arch)
    tensors = values = 0
    different: list[Difference] = []
    for name, ours in stream_policy(chunks, dtype):
        if ours is not None:
            found = compare_tensor(name, ours, folder.read(name, shapes[name]))
            tensors, values = tensors + 1, values + ours.numel()
            different += [found] if found is not None else []
    worst = max(different, key=lambda found: found.size, default=None)
    told: dict[str, Any] = {"tensors": tensors, "values": values, "differing": len(different)}
    if groups.is_rank_zero():
        told["worst"] = asdict(worst) if worst is not None else None
    told = exchange.broadcast_json(told)  # from rank 0: the other ranks saw no tensor
    if told["worst"] is not None:
        told["worst"] = Difference(**told["worst"] | {"place": tuple(told["worst"]["place"])})
    return WeightComparison(**told)


def compare_tensor(name: str, ours: Tensor, theirs: Tensor) -> Difference | None:
    """Compares two tensors of one shape in the less precise of their types. Returns None if all values are equal."""
    narrow = max(ours.dtype, theirs.dtype, key=_WIDTHS.index)
    first, second = ours.to(narrow).float().flatten(), theirs.to(narrow).float().flatten()
    different = first != second  # also where both are NaN
    count = int(different.sum())
    if count == 0:
        return None
    sizes = (first - second).abs().nan_to_num(nan=inf)
    at = int(torch.where(different, sizes, -1.0).argmax())
    place = tuple(int(index) for index in torch.unravel_index(torch.tensor(at), ours.shape))
    return Difference(name, count, ours.numel(), place, float(first[at]), float(second[at]))
