"""torch's AdamW without the import of torch's compiler, which takes longer than all other work before a small first step.

torch wraps some methods of its optimizers in functions that import the compiler when they are called first, only to tell
it to stay out. Nothing compiles an optimizer here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class EagerAdamW(torch.optim.AdamW):
    """Computes what torch's AdamW computes, with the same functions."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


@contextmanager
def eager() -> Iterator[None]:
    """Inside the block Megatron-Core builds EagerAdamW where it would build torch's AdamW."""
    usual = torch.optim.AdamW
    torch.optim.AdamW = EagerAdamW  # type: ignore[misc]
    try:
        yield
    finally:
        torch.optim.AdamW = usual  # type: ignore[misc]
