"""One allocation holds what was asked for, aligned, and no more."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.distributed.host_arena import ALIGNMENT, HostArena


@pytest.mark.parametrize("sizes", [[], [0], [1], [4096], [3, 0, 70_000, 64, 2**20 + 1]])
def test_an_arena_allocates_what_is_asked_for(sizes: list[int]) -> None:
    arena = HostArena(sizes, pinned=False)
    assert sum(sizes) <= arena.nbytes <= sum(sizes) + ALIGNMENT * len(sizes)
    assert all(tensor.untyped_storage().nbytes() == arena.nbytes for tensor in arena.tensors)
    assert [tensor.numel() for tensor in arena.tensors] == sizes
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in arena.tensors if tensor.numel())
    for number, tensor in enumerate(arena.tensors):
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(arena.tensors)), "they do not overlap"


def test_tensors_outlive_the_arena() -> None:
    tensors = HostArena([8, 16], pinned=False).tensors
    values = tensors[1].view(torch.float32).view(2, 2)
    values.fill_(2.5)
    del tensors
    assert values.tolist() == [[2.5, 2.5], [2.5, 2.5]]
