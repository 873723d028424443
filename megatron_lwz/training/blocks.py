"""Cuts a range of a tensor's elements into blocks of the global tensor, the form in which checkpoints store them.

A rank holds a contiguous range of the elements of a local tensor (flat, row-major), and the local tensor is a part of a
global one (tensor and pipeline parallelism). A range is a few boxes: the end of a row, whole rows, the beginning of a
row, and so in each dimension. So every rank saves and loads what it holds, as views, and nothing is gathered. A
checkpoint in blocks has the names and global shapes of one in whole tensors: torch reads either from the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_lwz.units import MIB

BLOCK_BYTES = 32 * MIB
"""Largest block (where one row is not larger): the host memory that a load, or a save without a copy, needs beside the
state."""

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""(offset, shape) of a part of a tensor, per dimension."""


def boxes(shape: tuple[int, ...], begin: int, end: int, limit: int) -> Iterator[Box]:
    """Yields the boxes that make up the elements `begin` .. `end` - 1 of a tensor of `shape`, in their flat order.

    A box has at most `limit` elements, or one row of the first dimension that it spans.
    """
    if begin >= end:
        return
    if len(shape) < 2:
        for start in range(begin, end, limit):
            size = min(limit, end - start)
            yield ((start,), (size,)) if shape else ((), ())
        return
    row = math.prod(shape[1:])
    while begin < end:
        index, inside = divmod(begin, row)
        rows = min((end - begin) // row, max(1, limit // row))
        if inside or not rows:  # a part of one row
            stop = min(row, inside + end - begin)
            yield from (((index, *offset), (1, *size)) for offset, size in boxes(shape[1:], inside, stop, limit))
            begin += stop - inside
        else:
            yield (index, *(0 for _ in shape[1:])), (rows, *shape[1:])
            begin += rows * row


def blocks(
    place: ShardedTensor | ShardedTensorFactory, data: torch.Tensor, begin: int, *, prefix: str = ""
) -> Iterator[ShardedTensor]:
    """Yields views of `data` with their places in the global tensor `prefix` + the parameter's name.

    `place` is Megatron's description of a parameter: its `data` is the local tensor. `data` [n] holds the elements
    `begin` .. `begin` + n - 1 of a tensor of that shape: the parameter's own, or a state of the optimizer. All blocks
    count as the main replica if the parameter is one apart from data parallelism.
    """
    factory = isinstance(place, ShardedTensorFactory)  # SwiGLU: gate and up are two halves of one parameter
    for part in nested_values(place.build()) if factory else (place,):
        assert part.data.is_contiguous(), part.key
        start = part.data.storage_offset() - place.data.storage_offset()
        first, last = max(begin, start), min(begin + data.numel(), start + part.data.numel())
        cursor, ahead = first - begin, part.prepend_axis_num
        limit = BLOCK_BYTES // data.element_size()
        for offset, size in boxes(tuple(part.local_shape), first - start, last - start, limit):
            shape, count = (1,) * ahead + size, math.prod(size)
            yield ShardedTensor(
                key=prefix + part.key,
                data=data[cursor : cursor + count].view(shape),
                dtype=data.dtype,
                local_shape=shape,
                global_shape=part.global_shape,
                global_offset=tuple(a + b for a, b in zip(part.global_offset, (0,) * ahead + offset, strict=True)),
                axis_fragmentations=None,  # blocks have any size
                replica_id=(*part.replica_id[:-1], 0),
                allow_shape_mismatch=part.allow_shape_mismatch,
            )
            cursor += count
