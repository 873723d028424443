"""The pages of an arena are locked as long as it lives, and copies to and from a GPU are exact."""

import ctypes
import gc

import pytest
import torch

from megatron_lwz.distributed.host_arena import HostArena
from megatron_lwz.distributed.parking import Parked

pytestmark = pytest.mark.gpu
MEMORY_TYPE, HOST = 2, 1
"""CU_POINTER_ATTRIBUTE_MEMORY_TYPE and CU_MEMORYTYPE_HOST of the driver's interface."""


def locked(tensor: torch.Tensor) -> bool:
    """What the driver says. Tensor.is_pinned() of torch 2.11 knows only memory of torch's own allocator."""
    kind = ctypes.c_uint()
    place = ctypes.c_void_p(tensor.data_ptr())
    status = ctypes.CDLL("libcuda.so.1").cuPointerGetAttribute(ctypes.byref(kind), MEMORY_TYPE, place)
    return status == 0 and kind.value == HOST


def test_pages_are_locked_while_the_arena_lives() -> None:
    arena = HostArena([100, 5000], pinned=True)
    tensor = arena.tensors[1]
    assert locked(tensor)
    del arena
    gc.collect()
    assert not locked(tensor)


def test_memory_of_a_gpu_comes_back_bit_for_bit() -> None:
    tensors = [torch.randn(size, device="cuda") for size in (33_000, 1, 70_001)]
    before = [tensor.clone() for tensor in tensors]
    parked = Parked(tensors)
    for _ in range(2):
        parked.out()
        parked.back()
        assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))
