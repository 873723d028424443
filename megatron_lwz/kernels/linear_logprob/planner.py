"""How many rows and columns of logits to hold at a time.

Whole rows (the gradient in the forward pass needs a row's log-sum-exp before its gradient) or tiles (a pass that goes
over the vocabulary from left to right). The bound is the workspace; within it, the choice that a model of the machine
finds fastest. The model of a GPU: products run in waves of 128 × 256 output tiles over the multiprocessors, and
adding a chunk to dW reads and writes all of dW. Of a CPU: a tile should stay in the last-level cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from megatron_lwz.units import MIB

_TILE_ROWS, _TILE_COLUMNS = 128, 256
"""Output tile of one multiprocessor in cuBLAS's large products."""
_BANDWIDTH, _FLOPS = 4.3e12, 790e12
"""H200: bytes per second copied, dense bf16 FLOP per second. Only their ratio matters."""
_CPU_TILE_BYTES = 8 * MIB
_CPU_COLUMNS = 4096
_CPU_UNIT = 64
_CPU_WIDTH = 512
"""Tile widths are multiples of this many columns, so that a library that compiles per shape sees few shapes."""
_GPU_COLUMNS = 4096


@dataclass(frozen=True)
class Plan:
    """Rows per chunk and columns per tile."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Machine:
    """Where the products run. `multiprocessors` is 0 on a CPU."""

    multiprocessors: int = 0

    @staticmethod
    def of(device: torch.device) -> Machine:
        """Returns the machine of a torch device."""
        if device.type != "cuda":
            return Machine()
        return Machine(torch.cuda.get_device_properties(device).multi_processor_count)


@dataclass(frozen=True)
class Shape:
    """`rows` of hidden size `hidden` against `vocab` columns on this rank."""

    rows: int
    hidden: int
    vocab: int


def plan_rows(shape: Shape, budget: int, machine: Machine, *, itemsize: int = 4) -> Plan:
    """Returns chunks of whole rows that fit `budget` bytes (one row at least)."""
    limit = max(1, min(shape.rows, budget // (itemsize * max(1, shape.vocab))))
    rows = _equal_share(shape.rows, limit)
    if machine.multiprocessors and limit > _TILE_ROWS:
        first = max(_TILE_ROWS, limit * 6 // 10 // _TILE_ROWS * _TILE_ROWS)
        candidates = [*range(first, limit + 1, _TILE_ROWS), limit]
        rows = min(candidates, key=lambda count: (chunk_seconds(shape, count, machine), -count))
    columns = (
        shape.vocab if machine.multiprocessors else _CPU_TILE_BYTES // (itemsize * rows) // _CPU_WIDTH * _CPU_WIDTH
    )
    return Plan(rows, max(1, min(shape.vocab, max(columns, _CPU_COLUMNS))))


def plan_tiles(shape: Shape, budget: int, machine: Machine, *, itemsize: int = 4) -> Plan:
    """Returns tiles that fit `budget` bytes, with as many rows as leave the columns wide enough for the products."""
    if not machine.multiprocessors:
        budget = min(budget, max(_CPU_TILE_BYTES, itemsize * _CPU_COLUMNS))
    least = min(max(1, shape.vocab), _GPU_COLUMNS if machine.multiprocessors else _CPU_COLUMNS)
    cells = max(1, budget // itemsize)
    rows = _equal_share(shape.rows, max(1, min(shape.rows, cells // least)))
    columns = max(1, min(shape.vocab, cells // rows))
    unit = _TILE_COLUMNS if machine.multiprocessors else _CPU_WIDTH
    if unit < columns < shape.vocab:
        columns -= columns % unit
    return Plan(rows, columns)


def _equal_share(total: int, limit: int) -> int:
    """Returns a chunk size of at most `limit` that leaves no small remainder of `total`.

    It is in whole units of a CPU's products if they fit.
    """
    share = -(-total // -(-total // limit))
    rounded = -(-share // _CPU_UNIT) * _CPU_UNIT
    return rounded if rounded <= limit else share


def utilisation(rows: int, columns: int, machine: Machine) -> float:
    """Returns the share of the multiprocessors' time that a product with a [rows, columns] result uses."""
    waves = math.ceil(rows / _TILE_ROWS) * math.ceil(columns / _TILE_COLUMNS) / machine.multiprocessors
    return rows * columns / (_TILE_ROWS * _TILE_COLUMNS * machine.multiprocessors * math.ceil(waves))


def chunk_seconds(shape: Shape, rows: int, machine: Machine) -> float:
    """Returns the modelled seconds of logits, dX and dW over chunks of `rows` rows, and of adding each chunk to dW."""
    full, rest = divmod(shape.rows, rows)
    product = 2.0 * shape.hidden * shape.vocab / _FLOPS

    def seconds(count: int) -> float:
        results = ((count, shape.vocab), (count, shape.hidden), (shape.vocab, shape.hidden))
        busy = sum(1 / utilisation(*result, machine) for result in results)
        return product * count * busy + 8.0 * shape.vocab * shape.hidden / _BANDWIDTH

    return full * seconds(rows) + (seconds(rest) if rest else 0.0)
