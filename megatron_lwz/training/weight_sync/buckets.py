"""Named tensors packed into buckets of bounded size, as vLLM's packed broadcast cuts and reads them.

Sender and receiver cut alike: tensors follow one another as raw bytes in one order that both know, and a bucket ends with
the tensor that takes it over the limit. One type for all keeps every tensor aligned in its bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from megatron_lwz.models.hf.name_map import Shape


class Buckets:
    """The plan for tensors of these shapes, in this order, all of `dtype`.

    `most_bytes` bounds a bucket where no tensor alone is larger; packing holds a bucket and one tensor.
    """

    def __init__(self, shapes: Mapping[str, Shape], dtype: torch.dtype, most_bytes: int) -> None:
        self._shapes = shapes
        self._dtype = dtype
        self._sizes = {name: prod(shape) * dtype.itemsize for name, shape in shapes.items()}
        self.limit = max(0, most_bytes - max(self._sizes.values()))
        """Bytes beyond which a bucket ends: what the receiver has to know."""
        self.cuts = cut(self._sizes, self.limit)
        self.largest = max(sum(self._sizes[name] for name in names) for names in self.cuts)
        """Bytes of the largest bucket."""

    def describe(self) -> dict[str, Any]:
        """What the receiver is told before the buckets come (`update_info` of vLLM)."""
        return {
            "names": list(self._shapes),
            "dtype_names": [str(self._dtype).removeprefix("torch.")] * len(self._shapes),
            "shapes": [list(shape) for shape in self._shapes.values()],
        }

    def pack(self, tensors: Iterable[tuple[str, Tensor | None]], device: torch.device) -> Iterator[Tensor]:
        """Yields the buckets, [bytes] uint8 on `device`. They share memory: have one sent before you ask for the next."""
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
    """Names of each bucket: it ends with the tensor that takes it beyond `limit` bytes."""
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
