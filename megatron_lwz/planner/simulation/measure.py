"""The numbers of a simulation, measured from a run: lengths from its journal, seconds from its metrics.

A decode step of n streams takes base + n · per_stream. In a synchronous run each step's engines begin with nothing to do,
so `seconds/rollout` is a sum over the decode steps of its batch: base · steps + per_stream · tokens + a constant, which
is what commits and rewards take. The journal knows steps and tokens, so the three are fitted over the run's steps. In a
run with stale rollouts the trainer waits only for a part of the writing. There one number is fitted, `base`: the one with
which the simulation of this run waits as long as the run did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_lwz.config import Config, load_config
from megatron_lwz.errors import DataError
from megatron_lwz.metrics import Row, read_metrics
from megatron_lwz.planner.simulation.closed_forms import decode_steps
from megatron_lwz.planner.simulation.engine import Decoding
from megatron_lwz.planner.simulation.lengths import GroupTokens, Replayed
from megatron_lwz.planner.simulation.numbers import Numbers, load_share, setting_of, share_said, weight_sync
from megatron_lwz.planner.simulation.outcome import simulate
from megatron_lwz.planner.simulation.pool import Engines
from megatron_lwz.planner.simulation.setting import Trainer
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.rollout.length_book import ZERO_VARIANCE
from megatron_lwz.rollout.lengths import GroupLengths
from megatron_lwz.run_paths import RunPaths

FIRST = 1
"""Steps at the beginning that are left out of all fits: they include what a process does only once."""
LEAST_STEPS = 4
LEAST_WAIT = 0.1
"""Share of the time that the trainer must have waited, for its waits to say how fast the engines write. In a run that
waited 7 % of its time the fit was wrong by a third.
"""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Records:
    """What is read of a run."""

    config: Config
    rows: list[Row]
    """Of metrics.jsonl, after the first steps."""
    groups: list[GroupLengths]
    prompts: Mapping[int, int]
    """Group → tokens of its prompt."""


def measure(run: Path, *, share: float | None = None, decoding: bool = True) -> tuple[Config, Numbers]:
    """Returns a run's config and numbers. Raises DataError where its files do not say enough.

    `share`: of a weight sync in which engines hold their streams, which a run does not record. `decoding`: whether
    to fit how fast engines write.
    """
    paths = RunPaths(run)
    config = load_config(paths.config)
    rows = [row for row in read_metrics(paths.metrics) if row["step"] > FIRST]
    if len(rows) < LEAST_STEPS:
        raise DataError(paths.metrics, f"has {len(rows)} steps after the first; {LEAST_STEPS} or more are needed")
    if missing := {"seconds/rollout", "seconds/update", "seconds/weight_sync"} - rows[-1].keys():
        raise DataError(paths.metrics, f"lacks {min(missing)}: name the folder of a GRPO run")
    with JournalReader(paths.journal) as journal, journal.still():
        records = _Records(config, rows, list(journal.lengths()), journal.prompt_lengths())
    groups = _whole_groups(records)
    if not groups:
        raise DataError(paths.journal, "has no step whose groups are all finished: let the run go on for a few steps")
    numbers = Numbers(
        Replayed(groups),
        _engines(records),
        _fit_trainer(records),
        weight_sync(_mean(rows, "seconds/weight_sync"), load_share(config, share)),
        rewards=0.0,
        sources={
            "lengths": f"measured, {len(groups)} groups of {run} in their order",
            "training": f"measured, {len(rows)} steps",
            "rewards": "assumed, no time",
            "weight sync": f"measured, engines on hold in {share_said(config, share)}",
        },
    )
    if not decoding:
        return config, numbers
    if config.rollout.max_staleness == 0:
        return config, _fit_batches(records, numbers, paths.metrics)
    return config, _fit_waits(records, numbers, paths.metrics)


def _whole_groups(records: _Records) -> list[GroupTokens]:
    """Returns the groups of the batches all of whose groups have come to their end.

    In later batches only the short ones have. A group whose requests failed has no known length.
    """
    unfinished = min((group.admitted for group in records.groups if not group.accounted), default=None)
    return [
        _tokens(group, records.prompts[group.id])
        for group in records.groups
        if (unfinished is None or group.admitted < unfinished)
        and len(group.rollouts) == records.config.grpo.group_size
        and all(rollout.end for rollout in group.rollouts)
    ]


def _tokens(group: GroupLengths, prompt: int) -> GroupTokens:
    reasons = [rollout.excluded for rollout in group.rollouts]
    barren = group.dropped == ZERO_VARIANCE or (ZERO_VARIANCE in reasons and None not in reasons)
    lengths = tuple(max(1, rollout.tokens) for rollout in group.rollouts)
    masked = sum(prompt + rollout.tokens for rollout in group.rollouts if rollout.excluded is not None)
    return GroupTokens(prompt, lengths, barren, 0 if barren else masked)


def _engines(records: _Records) -> Engines:
    """Returns the engines that answered, with the mean of their limits of concurrent rollouts."""
    count = max(1, round(_mean(records.rows, "rollout/engines_up", 1.0)))
    limit = _mean(records.rows, "rollout/concurrency_limit", float(count * records.config.rollout.concurrency))
    return Engines(count, max(1, round(limit / count)), Decoding(0.0))


def _fit_trainer(records: _Records) -> Trainer:
    tokens: dict[int, int] = {}
    for group in records.groups:
        trained = [rollout.tokens for rollout in group.rollouts if rollout.excluded is None]
        if group.step is not None:
            tokens[group.step] = tokens.get(group.step, 0) + sum(trained) + len(trained) * records.prompts[group.id]
    table = [[1.0, tokens.get(int(row["step"]), 0)] for row in records.rows]
    seconds = [row.get("seconds/logprobs", 0.0) + row["seconds/update"] for row in records.rows]
    fixed, per_token = least_squares(np.array(table), np.array(seconds)).tolist()
    return Trainer(per_token, fixed)


def _fit_batches(records: _Records, numbers: Numbers, file: Path) -> Numbers:
    """Fits decode steps and rewards to the waits, each of which is the whole writing of a batch."""
    engines, batches = numbers.engines, dict[int, list[int]]()
    for group in records.groups:
        batches.setdefault(group.admitted, []).extend(rollout.tokens for rollout in group.rollouts)
    table = []
    for row in records.rows:
        lengths = batches.get(int(row["step"]), [])
        table.append([1.0, decode_steps(lengths, engines.count * engines.slots), sum(lengths) / engines.count])
    known, waits = np.array(table), np.array([row["seconds/rollout"] for row in records.rows])
    fit = least_squares(known, waits)
    rewards, base, per_stream = fit.tolist()
    if base + per_stream <= 0:
        raise DataError(
            file, "the waits do not grow with the tokens, so it is unknown how fast engines write: --decode-rate"
        )
    error = float(np.abs(known @ fit - waits).mean() / waits.mean())
    said = f"measured, fits the waits of {len(waits)} synchronous steps within {error:.1%}"
    return replace(
        numbers,
        engines=replace(engines, decoding=Decoding(base, per_stream)),
        rewards=rewards,
        sources={**numbers.sources, "decoding": said, "rewards": "measured, by the same fit"},
    )


def _fit_waits(records: _Records, numbers: Numbers, file: Path) -> Numbers:
    """Finds the decode step with which the simulated run waits as long as the run did."""
    config, waited = records.config, _mean(records.rows, "seconds/rollout")
    total = sum(_mean(records.rows, name, 0.0) for name in records.rows[-1] if name.startswith("seconds/"))
    if waited < LEAST_WAIT * total:
        said = (
            f"the trainer hardly waited ({waited / total:.0%}), so it is unknown how fast engines write: --decode-rate"
        )
        raise DataError(file, said)

    def with_base(base: float) -> Numbers:
        return replace(numbers, engines=replace(numbers.engines, decoding=Decoding(base)))

    rollout, low = config.rollout, 0.0
    high = (rollout.max_staleness + 1) * total / numbers.lengths.mean  # a response is written within k + 1 steps
    while high - low > 1e-3 * high:
        base = (low + high) / 2
        setting = setting_of(
            config,
            with_base(base),
            steps=len(records.rows) + FIRST,
            staleness=rollout.max_staleness,
            over_sampling=rollout.over_sampling,
        )
        low, high = (low, base) if simulate(setting, numbers.lengths).waited > waited else (base, high)
    said = f"measured, the simulation of the run waits as long as its {len(records.rows)} steps did"
    return replace(with_base(high), sources={**numbers.sources, "decoding": said})


def _mean(rows: Sequence[Row], name: str, default: float = np.nan) -> float:
    return float(np.mean([row.get(name, default) for row in rows]))


def least_squares(known: Floats, wanted: Floats) -> Floats:
    """Returns the x ≥ 0 with the smallest |known · x - wanted|; known [N, D], wanted [N], few columns.

    Every subset of the columns is solved alone; the best solution without a negative number counts.
    """
    columns = range(known.shape[1])
    best, least = np.zeros(known.shape[1]), float(np.linalg.norm(wanted))
    for chosen in (list(some) for size in columns for some in combinations(columns, size + 1)):
        solution = np.linalg.lstsq(known[:, chosen], wanted, rcond=None)[0]
        error = float(np.linalg.norm(known[:, chosen] @ solution - wanted))
        if (solution >= 0).all() and error < least - 1e-12:
            best, least = np.zeros(known.shape[1]), error
            best[chosen] = solution
    return best
