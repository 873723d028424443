"""Huge pages of memory for what every decode step reads from end to end: weights, keys and values.

The processor looks up where each page of 4 KiB lies. With 2 MiB there are 512 times fewer of them: in a virtual machine, where
a look-up is slow, one core read memory about twice as fast.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from megatron_lwz.distributed.host_arena import HostArena
from megatron_lwz.units import MIB

_SIZE = 2 * MIB
"""Bytes of a huge page on x86-64, and on ARM with pages of 4 KiB."""
_PIECE = 64 * MIB
"""Most bytes of parameters that lie together; a larger one lies alone."""


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
    """Moves parameters on a CPU that are not loaded yet into pieces of memory with huge pages; their values are lost.

    Pieces, not one: each is freed and copied as a whole (`parking.Parked`).
    """
    piece: list[Tensor] = []
    for one in [p for p in parameters if p.device.type == "cpu"]:
        if piece and sum(p.nbytes for p in piece) + one.nbytes > _PIECE:
            _together(piece)
            piece = []
        piece.append(one)
    if piece:
        _together(piece)


def _together(piece: Sequence[Tensor]) -> None:
    arena = HostArena([one.nbytes for one in piece], pinned=False)
    prefer(arena.whole)
    for one, memory in zip(piece, arena.tensors, strict=True):
        one.data = memory.view(one.dtype).view(one.shape)
