"""torch's AdamW without the import of torch's compiler, which takes longer than all other work before a small first step.

torch wraps some methods of its optimizers in functions that import the compiler when they are called first, only to tell
it to stay out. Nothing compiles an optimizer here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_PIECE = 2**18
"""Numbers that are updated at once on a CPU: torch makes two temporary tensors as large, and these stay in a cache."""


class EagerAdamW(torch.optim.AdamW):
    """Computes what torch's AdamW computes, with the same functions; on a CPU piece by piece, to the same bits."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def _init_group(self, *given: Any) -> bool:
        """Fills torch's lists of what a group updates: parameters, gradients, both moments, the moments' maxima, steps."""
        is_complex: bool = super()._init_group(*given)
        *lists, maxima, steps = given[1:]
        if lists[0] and not maxima and all(x.device.type == "cpu" and x.is_contiguous() for row in lists for x in row):
            pieces = [[piece for x in row for piece in x.detach().view(-1).split(_PIECE)] for row in lists]
            counts = [-(-x.numel() // _PIECE) for x in lists[0]]
            # Every piece counts a step, which belongs to the parameter once.
            steps[:] = [copy for step, n in zip(steps, counts, strict=True) for copy in (step, *_copies(step, n - 1))]
            for row, split in zip(lists, pieces, strict=True):
                row[:] = split
        return is_complex


def _copies(step: Tensor, count: int) -> list[Tensor]:
    return [step.clone() for _ in range(count)]


@contextmanager
def eager() -> Iterator[None]:
    """Inside the block Megatron-Core builds EagerAdamW where it would build torch's AdamW."""
    usual = torch.optim.AdamW
    torch.optim.AdamW = EagerAdamW  # type: ignore[misc]
    try:
        yield
    finally:
        torch.optim.AdamW = usual  # type: ignore[misc]
