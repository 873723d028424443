"""The content of the journal as HTML: asked against written length, and rollouts to read. All model text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lwz.data.templates import detect_language
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.report.axes import short
from megatron_lwz.report.charts import LengthPoint, histogram, lengths_scatter
from megatron_lwz.report.text import html
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import Alarm, ComponentScore, Group

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
    return "".join(_reading(group) for group in picked[:count])


def _reading(group: Group) -> str:
    order = sorted(range(len(group.rollouts)), key=lambda index: (_total(_scores(group, index)), index))
    index = order[len(order) // 2]
    rollout, scores = group.rollouts[index], _scores(group, index)
    parsed = parse_rollout(group.prompt, rollout)
    facts = [f"{len(rollout.tokens)} tokens", f"ended by {html(rollout.stop or rollout.finish_reason.value)}"]
    if group.prompt.length:
        facts.append(f"asked {group.prompt.length.lower} to {group.prompt.length.upper}")
    if "words" in (details := scores.get("length", ComponentScore(0.0)).details):
        facts.append(f"wrote {details['words']:g}")
    facts += [f"{html(name)} {short(s.value) if s.valid else 'masked'}" for name, s in scores.items()]
    facts += [_alarm(alarm) for alarm in rollout.alarms]
    if parsed.fault:
        facts.append(f"fault: {html(parsed.fault)}")
    parts = [f'<div class="prompt text">{html(group.prompt.text)}</div><div class="facts">{" · ".join(facts)}</div>']
    if parsed.think:
        think = html(parsed.think.strip())
        parts.append(f'<details><summary>Thinking</summary><div class="think text">{think}</div></details>')
    parts += _judged(scores)
    body = parsed.answer if parsed.answer is not None else rollout.text
    parts.append(f'<div class="text">{html(body.strip())}</div>')
    return f'<article class="rollout">{"".join(parts)}</article>'


def _judged(scores: Mapping[str, ComponentScore]) -> list[str]:
    """Returns what judges say, folded, for each component that has reasons."""
    found = []
    for name, score in scores.items():
        lines = "".join(
            f"<p>{f'<b>{html(about)}</b> ' if about else ''}{html(said)}</p>" for about, said in score.reasons
        )
        found += [f"<details><summary>The judge on {html(name)}</summary>{lines}</details>"] if lines else []
    return found


def _alarm(alarm: Alarm) -> str:
    rule, place = html(alarm.rule), f"at token {alarm.position}"
    if not alarm.stopped:
        return f"guard: {rule} {place}, went on"
    return f"guard: {rule}, stopped {place}" + (", scores given" if alarm.scores else "")


def _groups(reader: JournalReader, steps: Sequence[int]) -> list[Group]:
    return [group for step in steps for group in reader.groups(consumed_at=step)]


def _points(groups: Sequence[Group]) -> list[LengthPoint]:
    points = []
    for group in groups:
        for index in range(len(group.rollouts)):
            details = _scores(group, index).get("length", ComponentScore(0.0)).details
            if group.prompt.length and "words" in details:
                points.append(LengthPoint(group.prompt.length.lower, group.prompt.length.upper, details["words"]))
    return points


def _scores(group: Group, index: int) -> Mapping[str, ComponentScore]:
    return group.scores[index] if group.scores else {}


def _total(scores: Mapping[str, ComponentScore]) -> float:
    return sum(score.value for score in scores.values() if score.valid)


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else str(steps[0]) if steps else "none"
