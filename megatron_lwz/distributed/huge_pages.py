"""Huge pages of memory for what every decode step reads from end to end: weights, keys and values.

The processor looks up where each page of 4 KiB lies. With 2 MiB there are 512 times fewer of them: in a virtual machine, where
a look-up is slow, one core read memory about twice as fast.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

from megatron_lwz.distributed.host_arena import HostArena
from megatron_lwz.units import MIB

_SIZE = 2 * MIB
"""Bytes of a huge page on x86-64, and on ARM with pages of 4 KiB."""


def prefer(memory: Tensor) -> Tensor:
    """Asks the system for huge pages behind a contiguous tensor on a CPU, and returns it. Call it before it is written to.

    Only whole huge pages inside count. Where the system has none to give, or elsewhere than on Linux, nothing changes.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    begin = -(-memory.data_ptr() // _SIZE) * _SIZE
    size = (memory.data_ptr() + memory.nbytes - begin) // _SIZE * _SIZE
    if advice is not None and memory.device.type == "cpu" and size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), advice)
    return memory


@torch.no_grad()
def gather(parameters: Iterable[Tensor]) -> None:
    """Moves parameters on a CPU that are not loaded yet into one piece of memory with huge pages; their values are lost."""
    found = [one for one in parameters if one.device.type == "cpu"]
    arena = HostArena([one.nbytes for one in found], pinned=False)
    if found:
        prefer(torch.empty(0, dtype=torch.uint8).set_(arena.tensors[0].untyped_storage()))
    for one, memory in zip(found, arena.tensors, strict=True):
        one.data = memory.view(one.dtype).view(one.shape)
