"""Differentiable collectives over the tensor-parallel group. A group of None or of one rank costs nothing.

Convention (Megatron's): every rank holds the same upstream gradient of a replicated tensor, while the gradient that
reaches `hidden` is this rank's share of a sum.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

Group = dist.ProcessGroup | None


def size(group: Group) -> int:
    """Returns the number of ranks in the group; 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


def all_gather(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Gathers […] of every rank, stacked in rank order: [ranks, …]. Not differentiable."""
    return start_all_gather(tensor, group).wait()


class Gathering:
    """A pending all-gather."""

    def __init__(self, gathered: torch.Tensor, work: dist.Work | None) -> None:
        self._gathered = gathered
        self._work = work

    def wait(self) -> torch.Tensor:
        """Waits for the result: [ranks, …] in rank order."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._gathered


def start_all_gather(tensor: torch.Tensor, group: Group) -> Gathering:
    """Starts an `all_gather` without waiting, so that other work can overlap with the communication."""
    if size(group) == 1:
        return Gathering(tensor.unsqueeze(0), None)
    gathered = tensor.new_empty(size(group) * tensor.shape[0], *tensor.shape[1:])  # gloo wants it joined, not stacked
    work = dist.all_gather_into_tensor(gathered, tensor.contiguous(), group=group, async_op=True)
    return Gathering(gathered.unflatten(0, (size(group), tensor.shape[0])), work)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        return all_gather(tensor, group).sum(0)  # fixed order: bitwise equal on all ranks

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return all_gather(hidden, group).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        share = gradient.new_empty(gradient.shape[0] // size(ctx.group), *gradient.shape[1:])
        dist.reduce_scatter_tensor(share, gradient.contiguous(), group=ctx.group)
        return share, None


def sum_over(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Sums over ranks in rank order. Each rank's gradient is the upstream one."""
    return tensor if size(group) == 1 else _Sum.apply(tensor, group)


def whole_hidden(hidden: torch.Tensor, group: Group, *, sequence_parallel: bool) -> torch.Tensor:
    """Returns all T rows on every rank. The gradient is summed over ranks in the backward pass.

    With `sequence_parallel`, `hidden` is this rank's [T / ranks, H] and gets its own share of the summed gradient.
    """
    if size(group) == 1:
        return hidden
    return (_Gathered if sequence_parallel else _Replicated).apply(hidden, group)
