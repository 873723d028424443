"""What `--dry-run shapes` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from megatron_lwz.cli import common
from megatron_lwz.config import Config, Stage
from megatron_lwz.errors import LwzError
from megatron_lwz.planner.dry_run import Memory, dry_run
from megatron_lwz.planner.hardware import DEFAULT, Gpu, gpu
from megatron_lwz.planner.timing import layout_of
from megatron_lwz.units import GIB

_LEAST_SHOWN = 1e-3
"""Share of the largest transfer; smaller ones (norms, counts) are left out of the table."""


class DoesNotFit(LwzError):
    """A rank needs more memory than the card has."""


def run(config: Config, stage: Stage, world: int, card: str | None) -> None:
    """Rehearses the stage on `world` ranks and prints what it found. Raises LwzError."""
    chosen = gpu(card or DEFAULT)
    found = list(dry_run(config, stage, world))
    common.console().print(f"dry run (shapes) of {stage}: {layout(config, world)}", markup=False)
    show(config, found, chosen)


def show(config: Config, found: Sequence[Memory], card: Gpu) -> None:
    """Prints what each kind of rank needs beside what the card has. Raises DoesNotFit after the tables."""
    out = common.console()
    out.print(f"{size_of_step(config, found)}; GiB per rank, not yet measured on a GPU", markup=False)
    out.print(_memory(found))
    out.print(_transfers(found))
    worst = max(found, key=lambda memory: memory.peak)
    room = f"{worst.peak / GIB:,.1f} of {card.memory / GIB:,.1f} GiB ({card.name})"
    if worst.peak > card.memory:
        instant = max(worst.instants, key=lambda name: worst.instants[name])
        advice = "change parallel, training.recompute or training.tokens_per_micro_batch, or train on more GPUs"
        raise DoesNotFit(f"{worst.kind} needs {room} at the instant '{instant}': {advice}")
    out.print(f"fits: at most {room}", markup=False)


def layout(config: Config, world: int) -> str:
    """Returns the layout in one line."""
    p = layout_of(config, world)
    virtual = f" (virtual {p.virtual})" if p.virtual > 1 else ""
    return f"{world} GPUs, tensor {p.tensor} × context {p.context} × pipeline {p.pipeline}{virtual} × data {p.data}"


def size_of_step(config: Config, found: Sequence[Memory]) -> str:
    """Returns what was rehearsed in one line."""
    t, packs = config.training, found[0].report.micro_batches
    size = f"{t.tokens_per_micro_batch:,} tokens per context-parallel group"
    return f"{t.precision}, recompute {t.recompute}, packs of {size}, {packs} per step"


def _memory(found: Sequence[Memory]) -> Table:
    table = Table(title="memory", title_justify="left")
    table.add_column("")
    for memory in found:
        table.add_column(str(memory.kind), justify="right")
    for part in found[0].report.state:
        table.add_row(part, *(gib(memory.report.state[part]) for memory in found))
    table.add_row("these together", *(gib(memory.state) for memory in found), end_section=True)
    for instant in found[0].instants:
        cells = (_instant(memory, instant) for memory in found)
        table.add_row(f"at most: {instant}", *cells)
    return table


def _instant(memory: Memory, instant: str) -> str:
    """Returns the most that is allocated at an instant, and how much of it is not the state."""
    if instant not in memory.instants:
        return "–"
    most = memory.instants[instant]
    return f"{gib(most)} ({(most - memory.state) / GIB:+,.2f})"


def _transfers(found: Sequence[Memory]) -> Table:
    table = Table(title="collectives of this step (GiB of whole tensors)", title_justify="left")
    for column in ("rank", "instant", "collective", "group", "calls", "GiB"):
        table.add_column(column, justify="right" if column in ("calls", "GiB") else "left")
    for memory in found:
        rows = [row for row in memory.report.transfers if row.ranks > 1]
        least = _LEAST_SHOWN * max((row.bytes for row in rows), default=0)
        for row in (row for row in rows if row.bytes >= least):
            where = f"{row.group} ({row.ranks})"
            table.add_row(str(memory.kind), row.phase, row.operation, where, str(row.count), gib(row.bytes))
    return table


def gib(size: int) -> str:
    """Returns bytes as GiB."""
    return f"{size / GIB:,.2f}"
