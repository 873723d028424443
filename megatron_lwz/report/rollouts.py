"""The content of the journal as HTML: asked against written length, and rollouts to read. All model text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lwz.data.templates import detect_language
from megatron_lwz.report.charts import LengthPoint, histogram, lengths_scatter
from megatron_lwz.report.reading import median_member, reading, scores_of
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import ComponentScore, Group

_WINDOW = 3
"""Number of training steps shown at each end of the run."""
_POINTS = 2000
"""Most rollouts in one scatter plot, so that the file stays small."""


@dataclass(frozen=True)
class Ends:
    """The groups consumed by the `first` and by the `last` training steps, with those steps' numbers."""

    first: Sequence[Group]
    last: Sequence[Group]
    first_steps: tuple[int, ...]
    last_steps: tuple[int, ...]


def read_ends(journal: Path) -> Ends | None:
    """Returns the groups of the first and last three training steps; None when no step has consumed any.

    In short runs the two ends share no step. Raises DataError when the journal cannot be read.
    """
    with JournalReader(journal) as reader:
        steps = sorted(set(reader.consumed().values()))
        if not steps:
            return None
        first = tuple(steps[: min(_WINDOW, (len(steps) + 1) // 2)])
        last = tuple(steps[max(len(steps) - _WINDOW, len(first)) :])
        return Ends(_groups(reader, first), _groups(reader, last), first, last)


def length_charts(ends: Ends, unit: str) -> str:
    """Returns two scatter plots on the same axes, first and last steps, and the histogram of both.

    Empty without length scores.
    """
    sides = {
        f"Steps {_span(ends.first_steps)}": _points(ends.first),
        f"Steps {_span(ends.last_steps)}": _points(ends.last),
    }
    sides = {name: points for name, points in sides.items() if points}
    if not sides:
        return ""
    every = [point for points in sides.values() for point in points]
    asked = max(point.upper for point in every)
    written = sorted(point.written for point in every)
    largest = 1.1 * max(asked, min(written[int(0.99 * len(written))], 2 * asked))
    charts = [lengths_scatter(n, p[:_POINTS], unit=unit, largest=largest) for n, p in sides.items()]
    lengths = {name: [point.written for point in points] for name, points in sides.items()}
    charts.append(histogram("Length of the answers", lengths, x_label=unit))
    return f'<div class="charts small">{"".join(charts)}</div>'


def readings(groups: Sequence[Group], count: int) -> str:
    """Returns `count` rollouts in full, from different prompts, in as many languages as there are.

    From each group it takes the rollout of median total reward: neither the best nor the worst.
    """
    by_language: dict[str, list[Group]] = {}
    for group in groups:
        by_language.setdefault(detect_language(group.prompt.text), []).append(group)
    picked: list[Group] = []
    while len(picked) < count and any(by_language.values()):
        picked += [waiting.pop(0) for waiting in by_language.values() if waiting]
    return "".join(
        f'<article class="rollout">{reading(group, median_member(group))}</article>' for group in picked[:count]
    )


def _groups(reader: JournalReader, steps: Sequence[int]) -> list[Group]:
    return [group for step in steps for group in reader.groups(consumed_at=step)]


def _points(groups: Sequence[Group]) -> list[LengthPoint]:
    points = []
    for group in groups:
        for index in range(len(group.rollouts)):
            details = scores_of(group, index).get("length", ComponentScore(0.0)).details
            if group.prompt.length and "words" in details:
                points.append(LengthPoint(group.prompt.length.lower, group.prompt.length.upper, details["words"]))
    return points


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else str(steps[0]) if steps else "none"
