"""Counts the bytes of the tensors that are made inside a block and alive at the same time: for a CPU, whose allocator does not."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """In this thread. What an operation allocates and gives back before it ends is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        """The most bytes at once of memory that no tensor from outside the block shares, since the last `begin`."""
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def begin(self) -> None:
        """Lets the peak begin anew, from what is alive now."""
        self._forget_dead()
        self.peak = self._held()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts what it made."""
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self._forget_dead()
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given | self._made.keys():
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, self._held())
        return result

    def _forget_dead(self) -> None:
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}

    def _held(self) -> int:
        return sum(size for _, size in self._made.values())


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
