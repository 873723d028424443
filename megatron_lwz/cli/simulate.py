"""`lwz simulate CONFIG [--run RUN_DIR]`: how long steps take, and what waits for what, before the run is made."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from megatron_lwz.cli import common, option_types
from megatron_lwz.cli.simulate_numbers import all_numbers
from megatron_lwz.config import Config
from megatron_lwz.planner.hardware import DEFAULT, gpus
from megatron_lwz.planner.simulation.closed_forms import engine_bound, trainer_bound
from megatron_lwz.planner.simulation.lengths import FORMS, quantile_of
from megatron_lwz.planner.simulation.numbers import Numbers, setting_of
from megatron_lwz.planner.simulation.outcome import Outcome, simulate
from megatron_lwz.planner.simulation.setting import Setting
from megatron_lwz.writing import write_text

STEPS = 50
"""Steps that are simulated unless the run has fewer, or --steps says otherwise."""
_EQUAL = 0.01
"""Steps whose times differ by less than this share are equally fast; the least stale one is then the best."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Simulated:
    """One row of the table."""

    engine_gpus: int | None
    sources: Mapping[str, str]
    setting: Setting
    outcome: Outcome
    undisturbed: Outcome | None
    """The same without failures, if there are any."""


def main(argv: Sequence[str]) -> None:
    """Prints the table; writes JSON if asked to. Raises LwzError."""
    config, options = common.parse(_parser(), argv)
    if options.json is not None:
        common.check_writable(options.json, "--json")
    policies = _policies(config, options)
    rows: list[Simulated] = []
    out = common.console()
    for split, numbers in all_numbers(config, options):
        out.print(_said(split, numbers), markup=False)
        out.print(_bounds(config, numbers), markup=False)
        rows += [_simulate(config, options, split, numbers, policy) for policy in policies]
    best = _best(rows)
    out.print(f"{rows[0].setting.steps} steps; ▸ the fastest, among equals the least stale", markup=False)
    for line in _table(rows, best):
        out.print(line, markup=False)
    if options.json is not None:
        write_text(options.json, json.dumps([_as_json(row, row is best) for row in rows], indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = common.parser(
        "Simulate a GRPO run: step time, idle engines and trainer, staleness. Numbers are measured from a run, or those of "
        "the plan, or given here."
    )
    parser.prog = "lwz simulate"
    add = parser.add_argument
    number, rate = option_types.not_negative_number, option_types.positive_number
    add("--run", metavar="RUN_DIR", type=Path, help="measure from this run's journal and metrics")
    add("--gpus", metavar="N", type=option_types.positive, help="GPUs of the run, engines included")
    add("--gpu", metavar="NAME", default=DEFAULT, help=f"the card of the plan: {', '.join(gpus())}")
    add("--engine-gpus", metavar="N,N", type=option_types.positives, help="GPUs of engines; each is a setting")
    add("--engine-tensor", metavar="N", type=option_types.positive, help="GPUs per engine")
    add("--max-staleness", metavar="K,K", type=_listed(option_types.not_negative), help="each is a setting")
    add("--over-sample", metavar="X,X", type=_listed(_over_sampling), help="each is a setting; none: strictly in order")
    add("--lengths", metavar="LAW", type=_law, help=f"law of response lengths: {', '.join(FORMS)}")
    add("--prompt-tokens", metavar="N", type=option_types.positive, help="tokens of a prompt, with --lengths")
    add(
        "--barren",
        metavar="SHARE",
        type=option_types.share,
        default=0.0,
        help="share of groups without variance, with --lengths",
    )
    add(
        "--decode-rate",
        metavar="R[,R]",
        type=_decode_rates,
        help="tokens/s of one stream alone, and with all slots of its engine busy",
    )
    add("--prefill-rate", metavar="R", type=rate, help="tokens/s that an engine reads of a prefix")
    add("--train-seconds", metavar="S", type=number, help="of a step of mean length")
    add("--sync-seconds", metavar="S", type=number, help="of a weight sync")
    add("--load-share", metavar="X", type=_part, help="share of the weight sync in which engines hold their streams")
    add("--reward-seconds", metavar="S", type=number, help="from a group's last token to its last score")
    add("--failures", metavar="H", type=rate, help="mean hours between two failures of one engine")
    add("--repair", metavar="S", type=number, default=300.0, help="seconds until an engine is back; default 300")
    add("--steps", metavar="N", type=option_types.positive, help=f"steps to simulate; default at most {STEPS}")
    add("--seed", metavar="N", type=option_types.not_negative, default=0)
    add("--json", metavar="FILE", type=Path, help="all settings and outcomes")
    return parser


def _listed(one: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """Returns a parser of values with commas between them."""
    return lambda text: [one(part) for part in text.split(",")]


def _over_sampling(text: str) -> float | None:
    return None if text == "none" else option_types.positive_number(text)


def _decode_rates(text: str) -> list[float]:
    rates = _listed(option_types.positive_number)(text)
    if len(rates) > 2 or rates[-1] > rates[0]:
        raise argparse.ArgumentTypeError(f"{text}: write R or R,R: alone, and not faster with all slots busy")
    return rates


def _part(text: str) -> float:
    value = option_types.not_negative_number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text}: must be from 0 to 1")
    return value


def _law(text: str) -> str:
    try:
        quantile_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _policies(config: Config, options: argparse.Namespace) -> list[tuple[int, float | None]]:
    """Returns pairs of max_staleness and over_sampling. A step takes its groups in order where less may be stale than
    would be carried over. Raises LwzError.
    """
    rollout = config.rollout
    stale = options.max_staleness or [config.rollout.max_staleness]
    over = options.over_sample or [config.rollout.over_sampling]
    for x in options.over_sample or ():
        if x is not None and x > max(stale):
            raise common.UsageError(f"--over-sample {x:g}: at most --max-staleness = {max(stale)} batches")
    pairs = list(dict.fromkeys((k, x if x is None or x <= k else None) for k, x in product(stale, over)))
    for k, x in pairs:  # what the run would refuse
        rollout = config.rollout.model_copy(update={"max_staleness": k, "over_sampling": x})
        config.model_copy(update={"rollout": rollout}).check_grpo()
    return pairs


def _simulate(
    config: Config,
    options: argparse.Namespace,
    split: int | None,
    numbers: Numbers,
    policy: tuple[int, float | None],
) -> Simulated:
    steps = options.steps or min(STEPS, config.training.steps)
    staleness, over_sampling = policy
    setting = setting_of(
        config, numbers, steps=steps, staleness=staleness, over_sampling=over_sampling, seed=options.seed
    )
    outcome, undisturbed = simulate(setting, numbers.lengths), None
    if setting.engines.failures is not None:
        calm = replace(setting, engines=replace(setting.engines, failures=None))
        undisturbed = simulate(calm, numbers.lengths)
    return Simulated(split, numbers.sources, setting, outcome, undisturbed)


def _said(split: int | None, numbers: Numbers) -> str:
    """Returns the line that says where every number comes from."""
    engines, decoding = numbers.engines, numbers.engines.decoding
    values = {
        "lengths": f"mean {numbers.lengths.mean:,.0f} tokens",
        "decoding": f"{1 / decoding.step_seconds(1):,.1f} tokens/s of one stream, "
        f"{1 / decoding.step_seconds(engines.slots):,.1f} of each of {engines.slots}",
        "rewards": f"{numbers.rewards:,.2f} s",
        "training": f"{numbers.trainer.per_token * 1e6:,.1f} µs a token and {numbers.trainer.fixed:,.2f} s a step",
        "weight sync": f"{numbers.sync.seconds:,.2f} s",
    }
    if engines.prefill:
        values["prefixes"] = f"{engines.prefill:,.0f} tokens/s"
    parts = [
        f"{name} {values[name]} ({numbers.sources[name]})" if name in values else f"{name} ({numbers.sources[name]})"
        for name in numbers.sources
    ]
    where = "" if split is None else f" on {split} GPUs"
    return f"{engines.count} engine{'s' * (engines.count > 1)}{where}: " + "; ".join(parts)


def _bounds(config: Config, numbers: Numbers) -> str:
    setting = setting_of(config, numbers, steps=1, staleness=0)
    rollouts = setting.batch * config.grpo.group_size
    trainer = trainer_bound(setting, rollouts * numbers.lengths.trained * (1 - numbers.lengths.barren))
    engines = engine_bound(setting, rollouts * numbers.lengths.mean)
    return f"a step takes at least {trainer:,.1f} s by the trainer alone and {engines:,.1f} s by the engines alone"


def _best(rows: Sequence[Simulated]) -> Simulated:
    fastest = min(row.outcome.step_seconds for row in rows)
    equal = [row for row in rows if row.outcome.step_seconds <= fastest * (1 + _EQUAL)]
    return min(equal, key=lambda row: (row.outcome.staleness, row.outcome.step_seconds))


def _table(rows: Sequence[Simulated], best: Simulated) -> list[str]:
    """Returns a Markdown table, aligned for the eye too."""
    table = [_cells(row, row is best) for row in rows]
    names = list(table[0])
    wide = {name: max(2, len(name), *(len(cells[name]) for cells in table)) for name in names}
    lines = [[name.rjust(wide[name]) for name in names], ["-" * (wide[name] - 1) + ":" for name in names]]
    lines += [[cells[name].rjust(wide[name]) for name in names] for cells in table]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cells(row: Simulated, best: bool) -> dict[str, str]:
    """Returns column → text."""
    found, setting = row.outcome, row.setting
    cells = {"": "▸" if best else " "}
    if row.engine_gpus is not None:
        cells["engine GPUs"] = str(row.engine_gpus)
    cells |= {
        "k": str(setting.staleness),
        "over": "–" if setting.over_sampling is None else f"{setting.over_sampling:g}",
        "step s": f"{found.step_seconds:,.2f}",
        "wait s": f"{found.waited:,.2f}",
        "trainer busy": f"{found.trainer_busy:.0%}",
        "engines busy": f"{found.engines_busy:.0%}",
        "streams": f"{found.streams:,.1f}",
        "stale": f"{found.staleness:.2f}",
        "most": str(found.most_staleness),
        "token": f"{found.token_staleness:.2f}",
        "waiting": f"{found.waiting:,.1f}",
        "length gap": f"{found.length_gap:.1%}",
        "tokens/s": f"{found.tokens_per_second:,.0f}",
    }
    if row.undisturbed is not None:
        cost = found.step_seconds / row.undisturbed.step_seconds - 1
        cells |= {"failures": f"{found.failures:,}", "moved": f"{found.moved:,}"}
        cells |= {"tokens kept": f"{found.moved_tokens:,.0f}", "cost": f"{cost:+.1%}"}
    return cells


def _as_json(row: Simulated, best: bool) -> dict[str, Any]:
    undisturbed = None if row.undisturbed is None else asdict(row.undisturbed)
    return {
        "engine_gpus": row.engine_gpus,
        "best": best,
        "sources": dict(row.sources),
        "setting": asdict(row.setting),
        "outcome": asdict(row.outcome),
        "without_failures": undisturbed,
    }
