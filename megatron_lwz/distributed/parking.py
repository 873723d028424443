"""Moves tensors out of the GPU's memory and back, in place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from megatron_lwz.distributed import huge_pages
from megatron_lwz.distributed.host_arena import HostArena


class Parked:
    """The memory behind tensors: `out` copies it to host memory and frees it, `back` restores it bit for bit.

    The tensors and all their views stay valid objects, but none of them may be read between `out` and `back`. Memory
    that several tensors share moves once. With `keep` False nothing is copied, and `back` returns zeros. Host memory
    that is shared with numpy (after an export on a CPU) cannot be freed: it stays in place, unchanged.
    """

    def __init__(self, tensors: Iterable[Tensor], *, keep: bool = True) -> None:
        found = (t.untyped_storage() for t in tensors if t.numel())
        storages = {storage.data_ptr(): storage for storage in found if storage.resizable()}
        self._storages = list(storages.values())
        self._sizes = [storage.nbytes() for storage in self._storages]
        self._keep = keep
        self._copies: HostArena | None = None
        self.is_out = False

    @property
    def nbytes(self) -> int:
        """Number of bytes that are moved."""
        return sum(self._sizes)

    @property
    def host_nbytes(self) -> int:
        """Number of bytes of host memory that hold the copies: 0 before the first `out`."""
        return self._copies.nbytes if self._copies else 0

    def out(self) -> None:
        """Frees the memory. No running operation may still use it."""
        if self.is_out:
            return
        if self._keep and self._copies is None:  # kept for reuse: pinning host memory costs more than the copy
            pinned = any(storage.device.type == "cuda" for storage in self._storages)
            self._copies = HostArena(self._sizes, pinned=pinned)
        for index, storage in enumerate(self._storages):
            if self._copies is not None:
                self._copies.tensors[index].copy_(_bytes_of(storage))
            storage.resize_(0)
        self.is_out = True

    def back(self) -> None:
        """Allocates the memory again and restores its content."""
        if not self.is_out:
            return
        for index, storage in enumerate(self._storages):
            storage.resize_(self._sizes[index])
            huge_pages.prefer(_bytes_of(storage))
            if self._copies is not None:
                _bytes_of(storage).copy_(self._copies.tensors[index])
            else:
                _bytes_of(storage).zero_()
        self.is_out = False


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
