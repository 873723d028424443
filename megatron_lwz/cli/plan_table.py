"""`lwz plan CONFIG --table 8,16,64`: the best layout found for several numbers of GPUs, as a Markdown table."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from megatron_lwz.cli import common
from megatron_lwz.cli.plan_setting import setting_of, watch
from megatron_lwz.config import Config
from megatron_lwz.planner.plan import Plan, Setting
from megatron_lwz.planner.rehearsals import Rehearsals
from megatron_lwz.planner.search import Learned, search
from megatron_lwz.units import GIB

_HEAD = (
    "GPUs", "train", "engines", "layout", "recompute", "tokens per pack", "peak GiB", "a step s", "rollout s", "steps h",
    "GPU-hours",
)  # fmt: skip


def show_table(config: Config, options: argparse.Namespace, most: int) -> None:
    """Prints a row per number of GPUs, as soon as it is known."""
    with Rehearsals(watch) as rehearsals:
        for line in rows(config, options, most, rehearsals):
            common.console().print(line, markup=False)


def rows(config: Config, options: argparse.Namespace, most: int, rehearsals: Rehearsals) -> Iterator[str]:
    """Yields the lines of the table: two of its head, then one for each of `options.table`."""
    yield from (_row(line) for line in (_HEAD, ("---",) * len(_HEAD)))
    learned = Learned(rehearsals)
    for gpus in options.table:
        options.gpus = gpus
        trainers, setting = setting_of(config, options)
        found = search(config, trainers, setting, learned, keep=1, most=most)
        yield _row(_cells(options, trainers, setting, found))


def _cells(options: argparse.Namespace, trainers: int, setting: Setting, found: list[Plan]) -> Iterable[str]:
    engines = setting.engines
    place = "–" if engines is None else f"{engines.count} × {engines.tensor}"
    start = (str(options.gpus), str(trainers), place)
    best = next((plan for plan in found if plan.reason is None), None)
    if best is None:
        return (
            *start,
            f"none of {len(found)} tried fits; the last: {found[-1].reason}" if found else "none",
            *[""] * 7,
        )
    t, (step, hours) = best.config.training, best.duration(setting)
    sizes = (f"{t.tokens_per_micro_batch:,}", f"{best.peak / GIB:,.1f}", f"{step:,.0f}")
    rollout = f"{best.seconds.get('rollout', 0.0):,.0f}"
    return (*start, str(best.layout), t.recompute, *sizes, rollout, f"{hours:,.1f}", f"{hours * options.gpus:,.0f}")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
