"""The two passes over a chunk's logits, tile of columns by tile of columns.

Statistics: the epilogue merges each tile of x · Wᵀ into its rows' running numbers. Gradient: the epilogue turns each
tile into dL/dz, and two products add that to dX and dW. Where the logits come from (a product, or kept from the pass
before) is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lwz.kernels.linear_logprob.epilogue import Epilogue, RowGradients, empty_statistics
from megatron_lwz.kernels.linear_logprob.head import Head, Tile, WeightGradient
from megatron_lwz.kernels.linear_logprob.problem import Problem
from megatron_lwz.kernels.linear_logprob.products import accumulate

Logits = Callable[[Tensor, Tile], Tensor]
"""Function (x [n, H], tile) → its logits [n, v]."""


@dataclass(frozen=True)
class Passes:
    """Both passes of one problem, `columns` of the vocabulary at a time."""

    head: Head
    problem: Problem
    epilogue: Epilogue
    columns: int

    def statistics(self, rows: Tensor, x: Tensor, logits: Logits) -> Tensor:
        """Returns the statistics [4, n] of this shard, for the rows numbered `rows` with hidden states x [n, H]."""
        labels = self.problem.labels[rows]
        running = empty_statistics(len(rows), dtype=self.head.accumulation, device=x.device)
        for tile in self.head.tiles(self.columns):
            self.epilogue.statistics(logits(x, tile), labels - tile.start, self.problem.scale, running)
        return running

    def gradient(
        self, rows: Tensor, x: Tensor, logits: Logits, per_row: RowGradients, weight: WeightGradient | None
    ) -> Tensor:
        """Returns this shard's share [n, H] of dX, and adds the chunk's part of dW to `weight`."""
        labels = self.problem.labels[rows]
        total = torch.zeros(x.shape, dtype=self.head.accumulation, device=x.device)
        for tile in self.head.tiles(self.columns):
            z = logits(x, tile)
            dz = self.epilogue.gradient(z, labels - tile.start, self.problem.scale, per_row, self.head.dtype)
            accumulate(total, dz, tile.weight)
            if weight is not None:
                weight.add(tile, dz, x)
        if weight is not None:
            weight.end_chunk()
        return total


_ALIGNMENT = 8
"""Rows begin at multiples of this many numbers: vector loads and stores need it, whatever the vocabulary."""


class Workspace:
    """A buffer for logits that is allocated once and sliced to size."""

    def __init__(self, rows: int, columns: int, head: Head) -> None:
        """Allocates memory for `rows` rows of `columns` columns."""
        cells = rows * _aligned(columns)
        self._buffer = torch.empty(cells, dtype=head.accumulation, device=head.parameter.device)
        self._head = head

    def cut(self, rows: int, columns: int) -> Tensor:
        """Returns a [rows, columns] part of the buffer, each row contiguous."""
        width = _aligned(columns)
        return self._buffer[: rows * width].view(rows, width)[:, :columns]

    def product(self, x: Tensor, tile: Tile) -> Tensor:
        """Returns the tile's logits, which stay in the workspace until the next product."""
        return self._head.logits(x, tile, self.cut(len(x), len(tile.weight)))


def _aligned(columns: int) -> int:
    return -(-columns // _ALIGNMENT) * _ALIGNMENT


def into(z: Tensor, head: Head) -> Logits:
    """Returns a function that computes tiles into whole rows z [n, valid]."""
    return lambda x, tile: head.logits(x, tile, z[:, tile.columns])


def held(z: Tensor) -> Logits:
    """Returns a function that reads tiles from whole rows z [n, valid]."""
    return lambda _x, tile: z[:, tile.columns]


class LogitsCache:
    """Tiles of logits kept from the forward to the backward pass, as many as fit the budget.

    fp32 weights keep fp32 logits. bf16 weights keep bf16 differences from the row's highest logit in the tile: rounding
    these costs a fiftieth of the accuracy that rounding the logits costs. The gradient's error stays that of its own
    bf16.
    """

    def __init__(self, budget: int, head: Head) -> None:
        self.budget = budget
        self._left = budget
        self._dtype = torch.float32 if head.parameter.dtype == torch.float32 else torch.bfloat16
        self._tiles: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}

    def keep(self, chunk: int, tile: Tile, z: Tensor) -> None:
        """Keeps the tile if there is room."""
        size = z.numel() * self._dtype.itemsize
        if size > self._left:
            return
        self._left -= size
        shift = None if self._dtype == z.dtype else z.amax(1, keepdim=True)
        kept = z.clone() if shift is None else (z - shift).to(self._dtype)
        self._tiles[chunk, tile.start] = kept, shift

    def take(self, chunk: int, tile: Tile) -> Tensor | None:
        """Returns the tile in fp32 and removes it; None if it was never kept."""
        found = self._tiles.pop((chunk, tile.start), None)
        if found is None:
            return None
        kept, shift = found
        return kept if shift is None else kept.float().add_(shift)
