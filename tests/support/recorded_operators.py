"""A CUDA graph's part without a GPU: the operators of a function, recorded and run again on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedOperators(TorchDispatchMode):
    """Records while it is active. `replay` repeats every operator with the tensors and numbers of then, into the same results.

    So a number that the host computed stays what it was, as in a graph, and the test's results differ.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]))
        return out

    def replay(self) -> None:
        """Runs the operators again."""
        for func, args, kwargs, results in self._calls:
            new = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for held, found in zip(results, new, strict=True):
                if held.data_ptr() != found.data_ptr():  # else a view, or written in place
                    held.copy_(found)


def record(compute: Callable[[], Tensor], _earlier: object) -> tuple[RecordedOperators, Tensor]:
    """Stands in for `decoding_graph._record`."""
    recorded = RecordedOperators()
    with recorded:
        result = compute()
    return recorded, torch.as_tensor(result)
