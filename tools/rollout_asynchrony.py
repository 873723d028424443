"""Compares synchronous and asynchronous training at equal data: the same groups and lengths, a simulated trainer."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from rollout_load import Server, make_load

from megatron_lwz.rollout.admission import Admission
from megatron_lwz.rollout.lengths import distribution_gap
from megatron_lwz.types import Group


@dataclass(frozen=True)
class Mode:
    """A mode: `staleness` k and `over_sampling` x, as in the config."""

    staleness: int
    over_sampling: float | None = None

    @property
    def name(self) -> str:
        """Name of the mode for a table."""
        carried = f", over-sampling {self.over_sampling:g}" if self.over_sampling else ""
        return f"k = {self.staleness}{carried}" if self.staleness else "synchronous"


MODES = (Mode(0), Mode(1), Mode(2), Mode(2, 1.0))


@dataclass(frozen=True)
class Outcome:
    """Results of one mode. Seconds; shares of the time from the first request to the end of the last step."""

    mode: str
    seconds_per_step: float
    tokens: int
    engine_utilisation: float
    """Share of slot-seconds in which a request occupied its slot."""
    trainer_utilisation: float
    largest_gap: float
    """Largest gap over the steps: the lengths trained on so far against as many groups in order of admission."""
    gap_at_end: float


def run_mode(mode: Mode, options: argparse.Namespace, server: Server, folder: Path) -> Outcome:
    """Trains `options.steps` steps. A step sleeps as long as its tokens would take, so that it uses no CPU time."""
    folder.mkdir()
    batch = max(1, options.streams // options.group)
    admission = Admission(batch, mode.staleness, carried=mode.over_sampling, last_step=options.steps)
    load = make_load(options, server.url, server.key, folder, admission)
    trained: list[list[Group]] = []
    training = 0.0
    load.controller.start()
    try:
        began = time.monotonic()
        for step in range(1, options.steps + 1):
            groups = load.controller.collect(step)
            seconds = _tokens(groups) / options.train_rate
            time.sleep(seconds)
            training += seconds
            load.controller.mark_consumed(groups, step)
            trained.append(groups)
        total = time.monotonic() - began
    finally:
        load.controller.close()
    gaps = _gaps(trained)
    return Outcome(
        mode.name,
        total / options.steps,
        sum(map(_tokens, trained)),
        load.client.busy / (options.streams * total),
        training / total,
        max(gaps),
        gaps[-1],
    )


def _tokens(groups: list[Group]) -> int:
    return sum(len(rollout.tokens) for group in groups for rollout in group.rollouts)


def _gaps(trained: list[list[Group]]) -> list[float]:
    """Returns the gap after each step.

    It compares the lengths trained on so far with the lengths of the same number of groups in order of admission.
    """
    lengths = {group.id: [len(r.tokens) for r in group.rollouts] for groups in trained for group in groups}
    admitted, until, gaps = sorted(lengths), list[int](), []
    for groups in trained:
        until += [group.id for group in groups]
        sampled = [length for group in admitted[: len(until)] for length in lengths[group]]
        gaps.append(distribution_gap(sampled, [length for group in until for length in lengths[group]]))
    return gaps
