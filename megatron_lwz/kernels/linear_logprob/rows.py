"""The rows of hidden that a pass works on, in chunks, and their transfer between sequence-parallel ranks.

With sequence parallelism a rank holds the rows [rank · T / TP, (rank + 1) · T / TP). A chunk then takes equally many
selected rows from every rank (padded where a rank has fewer). It is gathered just before it is used, and its gradient
is returned by one reduce-scatter. Without it every rank has all rows and the gradient is summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_lwz.kernels import collectives
from megatron_lwz.kernels.linear_logprob.problem import Problem


@dataclass(frozen=True)
class Chunk:
    """Rows that are multiplied with the head together."""

    rows: Tensor
    """[n] int64 in [0, T]; T is padding."""
    own: Tensor
    """[n], or [n / TP] with sequence parallelism: the rows that this rank's hidden contributes."""
    kept: int
    """Number of rows of `own` that are not padding. They come first."""


def cut(selected: Tensor, limit: int, problem: Problem) -> list[Chunk]:
    """Returns chunks of `limit` rows (at least one per rank) over the increasing rows `selected`.

    The last chunk has the remaining rows.
    """
    if not len(selected):
        return []
    if not problem.sequence_parallel:
        return [Chunk(rows, rows, len(rows)) for rows in selected.split(limit)]
    ranks, rank = collectives.size(problem.group), dist.get_rank(problem.group)
    share = problem.tokens // ranks
    # `selected` rises, so this counts each rank's rows; unlike `bincount` it does not wait for the GPU itself.
    counts = torch.searchsorted(selected, torch.arange(ranks + 1, device=selected.device) * share).diff().tolist()
    step = min(max(1, limit // ranks), max(counts))
    chunks = -(-max(counts) // step)
    padded = selected.new_full((ranks, step * chunks), problem.tokens)
    for line, rows in zip(padded, selected.split(counts), strict=True):
        line[: len(rows)] = rows
    found = []
    for index, rows in enumerate(padded.split(step, 1)):
        kept = min(max(counts[rank] - index * step, 0), step)
        own = (rows[rank] - rank * share).where(torch.arange(step, device=rows.device) < kept, 0)
        found.append(Chunk(rows.flatten(), own, kept))
    return found


def gathered(hidden: Tensor, chunks: Sequence[Chunk], problem: Problem) -> Iterator[tuple[Chunk, Tensor]]:
    """Yields every chunk with its rows x [n, H]. The next chunk is gathered while the caller works on one."""
    upcoming = _start(hidden, chunks[0], problem) if chunks else None
    for index, chunk in enumerate(chunks):
        assert upcoming is not None
        x, work = upcoming
        if work is not None:
            work.wait()
        upcoming = _start(hidden, chunks[index + 1], problem) if index + 1 < len(chunks) else None
        yield chunk, x


def _start(hidden: Tensor, chunk: Chunk, problem: Problem) -> tuple[Tensor, dist.Work | None]:
    own = hidden[chunk.own]
    if not problem.sequence_parallel:
        return own, None
    x = own.new_empty(len(chunk.rows), own.shape[1])
    return x, dist.all_gather_into_tensor(x, own, group=problem.group, async_op=True)


class HiddenGradient:
    """Collects dL/dhidden chunk by chunk. A chunk's sum over ranks overlaps with the next chunk's products."""

    def __init__(self, hidden: Tensor, problem: Problem) -> None:
        self._total = torch.zeros_like(hidden)
        self._problem = problem
        self._under_way: tuple[Chunk, Tensor, dist.Work | None] | None = None

    def add(self, chunk: Chunk, gradient: Tensor) -> None:
        """Adds this rank's share [n, H] of the gradient of the chunk's rows."""
        self._settle()
        work = None
        if gradient.is_cuda:  # half the bytes on the wire, and what Megatron's own layers send
            gradient = gradient.to(self._total.dtype)
        if self._problem.sequence_parallel:
            part = gradient.new_empty(len(chunk.own), gradient.shape[1])
            work = dist.reduce_scatter_tensor(part, gradient, group=self._problem.group, async_op=True)
            gradient = part
        elif collectives.size(self._problem.group) > 1:
            work = dist.all_reduce(gradient, group=self._problem.group, async_op=True)
        self._under_way = chunk, gradient, work

    def result(self) -> Tensor:
        """Returns [T (/ TP), H] in the dtype of hidden; rows without gradient are 0."""
        self._settle()
        return self._total

    def _settle(self) -> None:
        if self._under_way is None:
            return
        chunk, gradient, work = self._under_way
        if work is not None:
            work.wait()
        self._total[chunk.own[: chunk.kept]] = gradient[: chunk.kept].to(self._total.dtype)
        self._under_way = None
