"""What a simulated run comes to: the numbers that a real run has in `metrics.jsonl`, and the busy shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_lwz.planner.simulation.lengths import Lengths
from megatron_lwz.planner.simulation.run import Record, Simulation
from megatron_lwz.planner.simulation.setting import Setting


@dataclass(frozen=True)
class Outcome:
    """Means over all steps, the first ones and the last ones included, as in a real run."""

    step_seconds: float
    waited: float
    """Seconds of a step in which the trainer waited for rollouts (`seconds/rollout`)."""
    trained: float
    synced: float
    trainer_busy: float
    """Share of the time in which the trainer computed; it waits or sends weights in the rest."""
    engines_busy: float
    """Share of the time in which an engine wrote, mean over the engines."""
    streams: float
    """Streams of an engine while it wrote, mean over that time."""
    staleness: float
    """Steps between a group's admission and its training (`rollout/staleness`)."""
    most_staleness: int
    token_staleness: float
    """Steps between the weights that wrote a token and those that are trained (`rollout/token_staleness`)."""
    waiting: float
    """Admitted groups that were not ready when the batch was complete (`rollout/waiting`)."""
    length_gap: float
    """Largest shortfall of the mean length trained on up to a step, as a share of that of as many groups in the order
    of admission. 0: training saw no length earlier than another."""
    tokens_per_second: float
    """Response tokens of the trained groups."""
    replaced: int
    """Groups without variance that others replaced."""
    failures: int
    moved: int
    """Rollouts that went on after a failure of their engine."""
    moved_tokens: float
    """Tokens that they had already, and kept."""


def simulate(setting: Setting, lengths: Lengths) -> Outcome:
    """Simulates a run and sums it up."""
    return sum_up(Simulation(setting, lengths).run(), setting)


def sum_up(record: Record, setting: Setting) -> Outcome:
    """Returns the outcome of a run."""
    steps = record.steps
    waits = [number - admitted for number, step in enumerate(steps, 1) for admitted in step.admitted]
    tokens = sum(step.tokens for step in steps)
    trained = sum(step.trained for step in steps)
    return Outcome(
        step_seconds=record.seconds / len(steps),
        waited=sum(step.waited for step in steps) / len(steps),
        trained=trained / len(steps),
        synced=sum(step.synced for step in steps) / len(steps),
        trainer_busy=trained / record.seconds,
        engines_busy=record.busy_seconds / (record.seconds * setting.engines.count),
        streams=record.stream_seconds / record.busy_seconds,
        staleness=float(np.mean(waits)),
        most_staleness=max(waits),
        token_staleness=sum(step.unused_tokens for step in steps) / tokens,
        waiting=float(np.mean([step.waiting for step in steps])),
        length_gap=_length_gap(record),
        tokens_per_second=tokens / record.seconds,
        replaced=len(record.replaced),
        failures=record.failures,
        moved=record.moved,
        moved_tokens=record.moved_tokens,
    )


def _length_gap(record: Record) -> float:
    means = {number: float(np.mean(group.responses)) for number, group in record.admitted.items()}
    trained = [group for step in record.steps for group in step.groups]
    ends = np.cumsum([len(step.groups) for step in record.steps]) - 1
    so_far = np.cumsum([means[group] for group in trained])[ends]
    in_order = np.cumsum([means[group] for group in sorted(trained)])[ends]
    return float(np.max(1 - so_far / in_order, initial=0.0))
