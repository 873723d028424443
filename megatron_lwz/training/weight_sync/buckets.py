"""Named tensors packed into buckets of bounded size, as vLLM's packed broadcast cuts and reads them.

Sender and receiver cut in the same way. Tensors follow one another as raw bytes, in an order that both know, and a
bucket ends with the tensor that takes it over the limit. One dtype for all tensors keeps each of them aligned in its
bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from megatron_lwz.models.hf.name_map import Shape


class Buckets:
    """The bucket plan for tensors of these shapes, in this order, all of `dtype`.

    `most_bytes` bounds the size of a bucket unless a single tensor is larger. Packing holds one bucket and one tensor.
    """

    def __init__(self, shapes: Mapping[str, Shape], dtype: torch.dtype, most_bytes: int) -> None:
        self._shapes = shapes
        self._dtype = dtype
        self._sizes = {name: prod(shape) * dtype.itemsize for name, shape in shapes.items()}
        self.limit = max(0, most_bytes - max(self._sizes.values()))
        """Number of bytes beyond which a bucket ends. The receiver needs it."""
        self.cuts = cut(self._sizes, self.limit)
        self.largest = max(sum(self._sizes[name] for name in names) for names in self.cuts)
        """Size of the largest bucket in bytes."""

    def describe(self) -> dict[str, Any]:
        """Returns the description that the receiver gets before the buckets (`update_info` of vLLM)."""
        return {
            "names": list(self._shapes),
            "dtype_names": [str(self._dtype).removeprefix("torch.")] * len(self._shapes),
            "shapes": [list(shape) for shape in self._shapes.values()],
        }

    def pack(self, tensors: Iterable[tuple[str, Tensor | None]], device: torch.device) -> Iterator[Tensor]:
        """Yields the buckets, [bytes] uint8 on `device`.

        They share memory: send one completely before you ask for the next.
        """
        store = torch.empty(self.largest, dtype=torch.uint8, device=device)
        source = iter(tensors)
        for names in self.cuts:
            end = 0
            for name in names:
                found, tensor = next(source)
                assert (
                    tensor is not None
                    and found == name
                    and tensor.dtype == self._dtype
                    and tuple(tensor.shape) == self._shapes[name]
                )
                begin, end = end, end + self._sizes[name]
                store[begin:end].copy_(tensor.contiguous().view(-1).view(torch.uint8))
                del tensor
            yield store[:end]


def cut(sizes: Mapping[str, int], limit: int) -> list[Sequence[str]]:
    """Returns the tensor names of each bucket: a bucket ends with the tensor that takes it over `limit` bytes."""
    buckets: list[Sequence[str]] = []
    names: list[str] = []
    held = 0
    for name, size in sizes.items():
        names.append(name)
        held += size
        if held > limit:
            buckets.append(names)
            names, held = [], 0
    return [*buckets, names] if names else buckets
