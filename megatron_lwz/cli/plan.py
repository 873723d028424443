"""`lwz plan CONFIG --gpus 64 --gpu h100-80g`: whether a run fits, how long it takes, and which layout to choose."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.table import Table

from megatron_lwz.cli import common, option_types
from megatron_lwz.cli.dry_run_tables import layout as described
from megatron_lwz.cli.plan_setting import setting_of, watch
from megatron_lwz.cli.plan_table import show_table
from megatron_lwz.config import Config
from megatron_lwz.data.curriculum import planned
from megatron_lwz.planner.advice import advice, changes
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.dry_run import CHECKS
from megatron_lwz.planner.engines import Engines
from megatron_lwz.planner.hardware import DEFAULT, gpus
from megatron_lwz.planner.plan import Plan, Setting, make_plan
from megatron_lwz.planner.rehearsals import Rehearsals
from megatron_lwz.planner.search import Learned, search
from megatron_lwz.units import GIB

KEEP, MOST = 3, 10
"""Layouts that fit to look for, and layouts to rehearse at most."""


def main(argv: Sequence[str]) -> None:
    """Prints the plan of a run. Raises LwzError."""
    config, options = common.parse(_parser(), argv)
    if options.table is not None:
        show_table(config, options, MOST)
        return
    if options.gpus is None:
        raise common.UsageError("--gpus N: how many GPUs has the run, engines included? (or --table 8,16,64)")
    trainers, setting = setting_of(config, options)
    for line in planned(config) if options.stage == "grpo" else ():
        common.console().print(line, markup=False)
    with Rehearsals(watch) as rehearsals:
        now = make_plan(config, trainers, setting, rehearsals)
        _show_now(config, now, trainers, setting, options)
        learned = Learned(rehearsals)
        found = [] if options.no_search else search(config, trainers, setting, learned, keep=options.keep, most=MOST)
    _show_found(config, now, found, setting, options)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser(
        "Memory, time and layout of a run, from rehearsals on fake GPUs. Nothing is measured on a GPU."
    )
    parser.prog = "lwz plan"
    add = parser.add_argument
    add("--gpus", metavar="N", type=option_types.positive, help="GPUs of the run, engines included")
    add("--gpu", metavar="NAME", default=DEFAULT, help=f"the card: {', '.join(gpus())}")
    add("--table", metavar="N,N", type=option_types.positives, help="only a Markdown table for these numbers of GPUs")
    add("--stage", choices=tuple(CHECKS), default="grpo")
    add(
        "--engine-gpus", metavar="N", type=option_types.not_negative, help="GPUs of vLLM engines; default: half of them"
    )
    add(
        "--engine-tensor", metavar="N", type=option_types.positive, help="GPUs per engine; default: the fewest that fit"
    )
    add("--mean-tokens", metavar="N", type=option_types.positive_number, help="mean response, or text, in tokens")
    add("--price", metavar="X", type=option_types.positive_number, help="price of a GPU-hour, in any currency")
    add("--keep", metavar="N", type=option_types.positive, default=KEEP, help="layouts that fit to look for")
    add("--no-search", action="store_true", help="only the config's own layout")
    return parser


def _show_now(config: Config, now: Plan, trainers: int, setting: Setting, options: argparse.Namespace) -> None:
    """Prints the config's own layout."""
    out = common.console()
    what = f"plan of {setting.stage} for {options.gpus} × {setting.card.name}"
    out.print(f"{what}; nothing was measured on a GPU", markup=False)
    if setting.engines is not None:
        out.print(_engines(setting.engines, setting), markup=False)
    out.print(f"the config: {described(config, trainers)}: {now.reason or 'fits'}", markup=False)
    if now.ranks:
        out.print(_memory(now))
        out.print(_times(now, setting, config, options))


def _show_found(
    config: Config, now: Plan, found: Sequence[Plan], setting: Setting, options: argparse.Namespace
) -> None:
    """Prints what the search found, and what to change."""
    out = common.console()
    fitting = [plan for plan in found if plan.reason is None]
    best = min([*fitting, *([] if now.reason else [now])], key=Plan.step_seconds, default=None)
    if found:
        out.print(_layouts(found))
    if best is not None and best is not now:
        out.print(f"the best found: {changes(best)}", markup=False)
        out.print(_times(best, setting, config, options))
    out.print("what to change first:", markup=False)
    nothing = (
        "Nothing: the config fits, and no layout found is faster." if found else "The config fits; no other was tried."
    )
    for sentence in advice(now, best, setting, config) or [nothing]:
        out.print(f"  {sentence}", markup=False)
    out.print("assumed (formulas, not measured):", markup=False)
    for line in ASSUMED.lines():
        out.print(f"  {line}", markup=False)


def _engines(engines: Engines, setting: Setting) -> str:
    place = "shared with the trainer" if engines.colocated or setting.embedded else "of their own"
    sizes = (engines.weights / GIB, max(0, engines.cache) / GIB)
    room = f"{sizes[0]:,.1f} GiB of weights and {sizes[1]:,.1f} GiB for keys and values per GPU"
    return f"engines: {engines.count} of {engines.tensor} GPUs {place}; {room}; {setting.slots} rollouts at once each"


def _memory(plan: Plan) -> Table:
    table = Table(title="GiB per rank, rehearsed", title_justify="left")
    table.add_column("")
    for memory in plan.ranks:
        table.add_column(str(memory.kind), justify="right")
    for part in plan.ranks[0].report.state:
        table.add_row(part, *(f"{memory.report.state[part] / GIB:,.2f}" for memory in plan.ranks))
    for index, name in enumerate(plan.instants[0]):
        sizes = [found.get(name) for found in plan.instants]
        cells = ("–" if size is None else f"{size / GIB:,.2f}" for size in sizes)
        table.add_row(f"at most: {name}", *cells, end_section=index == len(plan.instants[0]) - 1)
    return table


def _times(plan: Plan, setting: Setting, config: Config, options: argparse.Namespace) -> Table:
    table = Table(title=f"{plan.layout}: a step, and the run (formula)", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for phase, seconds in plan.seconds.items():
        table.add_row(phase, f"{seconds:,.1f} s")
    step, hours = plan.duration(setting)
    table.add_row("a step", f"{step:,.1f} s", end_section=True)
    table.add_row("tokens of a step", f"{setting.work.tokens:,.0f}")
    table.add_row(f"{config.training.steps:,} steps", f"{hours:,.1f} h")
    table.add_row("GPU-hours", f"{hours * options.gpus:,.0f}")
    if options.price is not None:
        table.add_row("cost", f"{hours * options.gpus * options.price:,.0f}")
    return table


def _layouts(found: Sequence[Plan]) -> Table:
    table = Table(title="layouts, in the order in which they were tried", title_justify="left")
    for column in ("layout", "recompute", "tokens per pack", "peak GiB", "training s", ""):
        table.add_column(column, justify="right" if column in ("tokens per pack", "peak GiB", "training s") else "left")
    for plan in found:
        t = plan.config.training
        peak = f"{plan.peak / GIB:,.1f}" if plan.ranks else "–"
        seconds = f"{plan.training_seconds:,.1f}" if plan.seconds else "–"
        verdict = plan.reason or "fits"
        table.add_row(str(plan.layout), t.recompute, f"{t.tokens_per_micro_batch:,}", peak, seconds, verdict)
    return table
