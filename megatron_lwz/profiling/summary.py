"""The figures of a profile: where a step's time goes, the longest operators, and for what the trainer waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_lwz.profiling.lanes import Interval, covered, gaps, joined
from megatron_lwz.profiling.operators import Operators, Total
from megatron_lwz.profiling.spans import ENGINE, PHASES, REWARD, STEPS, SYNC, Span

REST = "between phases"
WAITING = ("rollout", "weight_sync", "checkpoint", "evaluation")
"""Phases in which the trainer's GPU has nothing to do."""
_WAITS_SHOWN = 10


@dataclass(frozen=True)
class Wait:
    """A time in which the trainer waits. `engines`, `rewards`: shares of it in which any of them worked."""

    step: int
    phase: str
    at: float
    """Seconds from the beginning of the profile."""
    seconds: float
    engines: float
    rewards: float


@dataclass(frozen=True)
class Service:
    """An engine or a reward: its calls, the tokens that it wrote, the share of the profile in which it worked."""

    name: str
    calls: int
    tokens: int
    busy: float
    seconds: float
    """Mean length of a call."""


@dataclass(frozen=True)
class Summary:
    """The figures of the recorded steps. Times are seconds."""

    steps: Sequence[int]
    seconds: float
    phases: Mapping[str, Mapping[str, float]]
    """Rank → phase → its time. The rest of the steps stands under REST."""
    sync: Mapping[str, float]
    waits: Sequence[Wait]
    services: Sequence[Service]
    operators: Mapping[str, Operators] = field(default_factory=dict)
    """Rank → its operators."""

    def as_json(self) -> dict[str, Any]:
        """Returns plain data that `summary_from` reads."""
        found = asdict(self)
        for part in found["operators"].values():
            del part["busy"]
        return found


def summary_from(value: Mapping[str, Any]) -> Summary:
    """Returns the Summary of plain data. Raises KeyError, TypeError, ValueError or AttributeError for other data."""
    operators = {
        str(rank): Operators(
            tuple(Total(**row) for row in part["host"]),
            tuple(Total(**row) for row in part["gpu"]),
            part["gpu_busy"],
        )
        for rank, part in value["operators"].items()
    }
    return Summary(
        steps=[int(step) for step in value["steps"]],
        seconds=float(value["seconds"]),
        phases={str(rank): {str(k): float(v) for k, v in part.items()} for rank, part in value["phases"].items()},
        sync={str(name): float(seconds) for name, seconds in value["sync"].items()},
        waits=[Wait(**row) for row in value["waits"]],
        services=[Service(**row) for row in value["services"]],
        operators=operators,
    )


def summarize(
    trainers: Mapping[int, Sequence[Span]], services: Sequence[Span], operators: Mapping[int, Operators]
) -> Summary:
    """Returns the figures. `trainers`: spans by rank, of which rank 0 has waited for the services."""
    first = trainers[0]
    steps = sorted((span for span in first if span.track == STEPS), key=lambda span: span.begin)
    whole = (steps[0].begin, steps[-1].end)
    return Summary(
        steps=[int(span.facts["step"]) for span in steps],
        seconds=(whole[1] - whole[0]) / 1e9,
        phases={str(rank): _phases(spans) for rank, spans in trainers.items()},
        sync=_sums(span for span in first if span.track == SYNC),
        waits=_waits(first, steps, services),
        services=[*_services(services, ENGINE, whole), *_services(services, REWARD, whole)],
        operators={str(rank): found for rank, found in operators.items()},
    )


def _phases(spans: Sequence[Span]) -> dict[str, float]:
    found = _sums(span for span in spans if span.track == PHASES)
    steps = sum(span.seconds for span in spans if span.track == STEPS)
    return found | {REST: max(0.0, steps - sum(found.values()))}


def _sums(spans: Iterable[Span]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for span in spans:
        found[span.name] += span.seconds
    return dict(found)


def _waits(spans: Sequence[Span], steps: Sequence[Span], services: Sequence[Span]) -> list[Wait]:
    phases = [span for span in spans if span.track == PHASES]
    known = joined((span.begin, span.end) for span in phases)
    engines, rewards = (
        joined((span.begin, span.end) for span in services if span.track.startswith(kind)) for kind in (ENGINE, REWARD)
    )
    found = []
    for step in steps:
        inside = [span for span in phases if step.begin <= span.begin < step.end and span.name in WAITING]
        parts = [(span.name, (span.begin, span.end)) for span in inside]
        parts += [(REST, gap) for gap in gaps((step.begin, step.end), known)]
        for name, part in parts:
            length = part[1] - part[0]
            found.append(
                Wait(
                    step=int(step.facts["step"]),
                    phase=name,
                    at=(part[0] - steps[0].begin) / 1e9,
                    seconds=length / 1e9,
                    engines=covered(part, engines) / max(1, length),
                    rewards=covered(part, rewards) / max(1, length),
                )
            )
    return sorted(found, key=lambda wait: -wait.seconds)[:_WAITS_SHOWN]


def _services(spans: Sequence[Span], kind: str, whole: Interval) -> list[Service]:
    by_track: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if span.track.startswith(kind):
            by_track[span.track].append(span)
    return [
        Service(
            name=track,
            calls=len(calls),
            tokens=int(sum(span.facts.get("tokens", 0) for span in calls)),
            busy=covered(whole, joined((span.begin, span.end) for span in calls)) / max(1, whole[1] - whole[0]),
            seconds=sum(span.seconds for span in calls) / len(calls),
        )
        for track, calls in sorted(by_track.items())
    ]
