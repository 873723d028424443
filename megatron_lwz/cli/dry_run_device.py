"""What `--dry-run device` prints: memory that real ranks took, beside what `--dry-run shapes` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from megatron_lwz.cli import common
from megatron_lwz.cli.dry_run_tables import gib, layout
from megatron_lwz.config import Config, Stage
from megatron_lwz.distributed import environment, launch
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.planner.device import Measured, measure
from megatron_lwz.planner.dry_run import Memory, RankKind, case_of, run_cases
from megatron_lwz.units import GIB


def run(config: Config, stage: Stage) -> None:
    """Makes the step on all ranks; rank 0 prints. Every rank calls it. Raises LwzError."""
    try:
        found = measure(config, stage)
    finally:
        launch.shutdown()
    if environment.rank() == 0:
        show(config, stage, found)


def show(config: Config, stage: Stage, found: Sequence[Measured]) -> None:
    """Prints, for each pipeline stage, the rank that took most, beside the plan."""
    out = common.console()
    world = len(found)
    out.print(f"dry run (device) of {stage}: {layout(config, world)}", markup=False)
    stages = sorted({one.stage for one in found})
    largest = [max((one for one in found if one.stage == at), key=lambda one: one.peak) for at in stages]
    plan = _plan(config, stage, largest, world)
    on_gpus = found[0].reserved is not None
    what = (
        "torch.cuda.max_memory_allocated"
        if on_gpus
        else "held by tensors of a CPU, where those of host memory count too"
    )
    out.print(f"GiB per rank: {what}; of each pipeline stage the rank that took most", markup=False)
    for one in largest:
        out.print(_table(one, plan.get(one.rank), len(stages)))
    out.print(_ranks(found))
    out.print("the step fits; nothing was written, no rollout was made", markup=False)


def _plan(config: Config, stage: Stage, ranks: Sequence[Measured], world: int) -> Mapping[int, Memory]:
    """Returns rank → its rehearsal; empty, with a line, where this machine cannot rehearse."""
    kinds = [RankKind(one.stage, config.parallel.pipeline, one.rank) for one in ranks]
    try:
        memories = run_cases(kinds, [case_of(config, stage, world, kind) for kind in kinds])
        return {memory.kind.rank: memory for memory in memories}
    except EnvironmentSetupError as error:
        common.console().print(f"no plan to compare with: {error}", markup=False)
        return {}


def _table(one: Measured, plan: Memory | None, stages: int) -> Table:
    title = f"stage {one.stage + 1} of {stages}, rank {one.rank}" if stages > 1 else f"rank {one.rank}"
    table = Table(title=title, title_justify="left")
    for column in ("", "plan", "measured", "measured / plan"):
        table.add_column(column, justify="right" if column else "left")
    planned = plan.report.state if plan is not None else {}
    for part, size in one.state.items():
        table.add_row(part, *_cells(planned.get(part), size))
    table.add_section()
    instants = plan.instants if plan is not None else {}
    for instant, size in one.instants.items():
        table.add_row(f"at most: {instant}", *_cells(instants.get(instant), size))
    return table


def _cells(planned: int | None, measured: int) -> tuple[str, str, str]:
    if planned is None:
        return "–", gib(measured), "–"
    return gib(planned), gib(measured), f"{measured / planned:.3f}" if planned else "–"


def _ranks(found: Sequence[Measured]) -> Table:
    table = Table(title="every rank", title_justify="left")
    for column in ("rank", "at most", "held by the allocator", "of the GPU"):
        table.add_column(column, justify="right")
    for one in found:
        held = "–" if one.reserved is None else gib(one.reserved)
        room = "–" if one.capacity is None else f"{one.capacity / GIB:,.2f}"
        table.add_row(str(one.rank), gib(one.peak), held, room)
    return table
