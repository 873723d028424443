"""Host memory for many tensors in one allocation, page-locked where there is a GPU.

torch's allocator of page-locked memory rounds every allocation up to a power of two: a state of 25 GiB took 44. Here
the pages are ordinary ones of the process, as many as the tensors need, and the driver locks them where they are.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes, a multiple of every element size: each tensor begins at a multiple of it."""


class HostArena:
    """Memory of given sizes in bytes. It stays allocated as long as the arena or a tensor in it, locked as the arena."""

    def __init__(self, sizes: Sequence[int], *, pinned: bool) -> None:
        """Raises RuntimeError if the memory cannot be locked."""
        starts = [0, *accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]
        self.nbytes = starts[-1]
        """Number of bytes of the tensors, aligned; with `pinned`, also of what fills up their pages."""
        if pinned:
            self.nbytes = -(-self.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.whole = locked_pages(self, self.nbytes) if pinned else torch.empty(self.nbytes, dtype=torch.uint8)
        """All of them, [nbytes] of uint8."""
        self.tensors = [self.whole[start : start + size] for start, size in zip(starts, sizes, strict=False)]
        """One view [size] of uint8 per size, not initialised."""


def locked_pages(owner: object, nbytes: int) -> Tensor:
    """Returns whole pages of host memory that are locked as long as `owner` lives. Raises RuntimeError."""
    memory = torch.empty(nbytes + mmap.PAGESIZE, dtype=torch.uint8)
    start = -memory.data_ptr() % mmap.PAGESIZE
    pages = memory[start : start + nbytes]
    if nbytes:
        torch.cuda.check_error(int(torch.cuda.cudart().cudaHostRegister(pages.data_ptr(), nbytes, 0)))
        # The finalizer holds the memory, so that it is unlocked before it is freed.
        weakref.finalize(owner, _unlock, pages).atexit = False
    return pages


def _unlock(pages: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(pages.data_ptr())
