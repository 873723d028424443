"""Signs of reward hacking: what the rewards may pay for besides good writing (length, repetition, stock openings).

The figures come from a sample of the journal's groups. Correlations are Spearman's, computed inside groups, where the
prompt is the same, because advantages compare rollouts inside groups.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.data.text.length import count_units
from megatron_lwz.data.text.near_duplicates import UNIT
from megatron_lwz.evaluation.statistics import rank_correlation
from megatron_lwz.evaluation.text_metrics import distinct
from megatron_lwz.orchestrator.experience import group_advantages
from megatron_lwz.report.axes import short
from megatron_lwz.report.charts import curves, scatter
from megatron_lwz.rewards.composite import component_sections, score_tensors
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import Group

_ENDS = 3
"""Number of training steps compared at each end of the run."""
_STEPS, _GROUPS_BETWEEN, _GROUPS_AT_ENDS = 30, 4, 12
"""Limits of the sample, because a run may hold gigabytes of text.

In order: the most steps read, the most groups per step in between, and the most groups per step at the ends.
"""
_POINTS = 1000
_OPENINGS = 8
_ADVANTAGE = "advantage"
_FEATURES = {"length": "length", "repetition": "repetition", "opening": "stock opening"}


@dataclass(frozen=True)
class Written:
    """One rollout: its rewards, and features that the rewards may depend on. `rewards` None where masked."""

    group: int
    step: int
    length: float
    """Words + CJK characters of the answer."""
    repetition: float | None
    """Share of its 4-grams that occurred before in the answer; None for an answer shorter than one 4-gram."""
    start: str
    """The answer's first words, in lower case; empty when there are too few."""
    rewards: Mapping[str, float | None]
    included: bool


@dataclass(frozen=True)
class Sample:
    """Rollouts of some steps. `first` and `last` are the steps that are compared."""

    rollouts: Sequence[Written]
    names: tuple[str, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]


def read_sample(journal: Path, config: Config) -> Sample | None:
    """Reads up to 30 steps. Returns None when fewer than two were consumed. Raises DataError."""
    with JournalReader(journal) as reader, reader.still():
        scored = set(reader.scored())
        by_step: defaultdict[int, list[int]] = defaultdict(list)
        for group, step in sorted(reader.consumed().items()):
            if group in scored:
                by_step[step].append(group)
        steps = sorted(by_step)
        if len(steps) < 2:
            return None
        first = tuple(steps[: min(_ENDS, len(steps) // 2)])
        last = tuple(steps[-len(first) :])
        between = steps[len(first) : -len(last)]
        stride = max(1, -(-len(between) // (_STEPS - 2 * _ENDS)))
        picked = dict.fromkeys(between[::stride], _GROUPS_BETWEEN) | dict.fromkeys((*first, *last), _GROUPS_AT_ENDS)
        names = tuple(component_sections(config.reward))
        found = [
            written
            for step, most in sorted(picked.items())
            for group in reader.texts(by_step[step][:most])
            for written in _measure(group, step, config, names)
        ]
    return Sample(found, names, first, last)


def panel(sample: Sample) -> str:
    """Returns the section's content; empty without rollouts that took part in training."""
    if not any(written.included for written in sample.rollouts):
        return ""
    note = (
        '<p class="note">Rank correlation inside groups between each reward and length, repetition (share of 4-grams used '
        "before) and stock openings (how many other prompts' answers begin with the same words); "
        f"steps {_span(sample.first)} → {_span(sample.last)}. Near 1 or −1: the reward follows that alone.</p>"
    )
    charts = [_over_steps(sample), *_scatters(sample)]
    drawn = f'<div class="charts small">{"".join(chart for chart in charts if chart)}</div>'
    return note + _correlations(sample) + drawn + _between(sample) + _openings(sample)


def _measure(group: Group, step: int, config: Config, names: Sequence[str]) -> list[Written]:
    rewards, valid = score_tensors([group], names)
    found = group_advantages([group], config, names=names, scores=(rewards, valid))
    written = []
    for place, rollout in enumerate(group.rollouts):
        answer = parse_rollout(group.prompt, rollout).answer or ""
        values = {
            name: float(rewards[0, place, column]) if valid[0, place, column] else None
            for column, name in enumerate(names)
        }
        values[_ADVANTAGE] = float(found.total[0, place])
        share = distinct(answer, 4)
        repetition = None if share is None else 1 - share
        taken = bool(found.included[0, place])
        written.append(Written(group.id, step, float(count_units(answer)), repetition, opening(answer), values, taken))
    return written


def opening(answer: str) -> str:
    """Returns the first 5 words or 8 CJK characters of the first line that is not a heading, in lower case.

    Returns an empty string if the line has fewer.
    """
    for line in answer.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            units = UNIT.findall(line.lower())
            chinese = bool(units) and "\u3400" <= units[0] <= "\u9fff"
            size = 8 if chinese else 5
            return ("" if chinese else " ").join(units[:size]) if len(units) >= size else ""
    return ""


def _correlations(sample: Sample) -> str:
    sides = [_features(sample, steps) for steps in (sample.first, sample.last)]
    lines = []
    for name in (*sample.names, _ADVANTAGE):
        cells = []
        for feature in _FEATURES:
            values = [_correlation(side, name, feature) for side in sides]
            cells.append("".join(f"<td>{'–' if value is None else short(value)}</td>" for value in values))
        lines.append(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{label}, first</th><th>last</th>" for label in _FEATURES.values())
    return f'<div class="wide" tabindex="0"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


Row = tuple[Written, Mapping[str, float | None]]


def _features(sample: Sample, steps: Sequence[int]) -> list[Row]:
    """Returns the rollouts of some steps that took part in training, each with its features."""
    found = [written for written in sample.rollouts if written.step in steps and written.included]
    users: defaultdict[str, set[int]] = defaultdict(set)
    for written in found:
        users[written.start].add(written.group)
    return [
        (
            written,
            {
                "length": written.length,
                "repetition": written.repetition,
                "opening": float(len(users[written.start] - {written.group})) if written.start else None,
                **{_as_feature(name): value for name, value in written.rewards.items()},
            },
        )
        for written in found
    ]


def _correlation(rows: Sequence[Row], reward: str, feature: str) -> float | None:
    """Returns the mean correlation over groups; None where both sides vary in no group."""
    groups: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for written, features in rows:
        value, other = written.rewards[reward], features[feature]
        if value is not None and other is not None:
            groups[written.group].append((other, value))
    found = (rank_correlation([a for a, _ in pairs], [b for _, b in pairs]) for pairs in groups.values())
    kept = [value for value in found if value is not None]
    return sum(kept) / len(kept) if kept else None


def _between(sample: Sample) -> str:
    """Returns the correlations between components in the last steps; empty with a single component."""
    if len(sample.names) < 2:
        return ""
    rows = _features(sample, sample.last)
    lines = []
    for name in (*sample.names, _ADVANTAGE):
        values = [_correlation(rows, name, _as_feature(other)) for other in sample.names]
        cells = "".join(f"<td>{'–' if value is None else short(value)}</td>" for value in values)
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in sample.names)
    head = f"<tr><th>rank correlation, steps {_span(sample.last)}</th>{heads}</tr>"
    return f'<div class="wide" tabindex="0"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def _as_feature(name: str) -> str:
    return f"reward {name}"


def _over_steps(sample: Sample) -> str:
    steps = sorted({written.step for written in sample.rollouts})
    series: dict[str, list[tuple[float, float]]] = {}
    for feature in ("length", "repetition"):
        found = [(step, _correlation(_features(sample, (step,)), _ADVANTAGE, feature)) for step in steps]
        series[_FEATURES[feature]] = [(float(step), value) for step, value in found if value is not None]
    return curves("Advantage follows", series, unit="rank correlation in groups")


def _scatters(sample: Sample) -> list[str]:
    charts = []
    for feature, label in (("length", "words + CJK characters"), ("repetition", "share of repeated 4-grams")):
        sides = {}
        for steps in (sample.first, sample.last):
            points = [
                (value, written.rewards[_ADVANTAGE] or 0.0)
                for written, features in _features(sample, steps)
                if (value := features[feature]) is not None
            ]
            sides[f"steps {_span(steps)}"] = points[:: max(1, -(-len(points) // _POINTS))]
        charts.append(scatter(f"Advantage against {_FEATURES[feature]}", sides, x_label=label))
    return charts


def _openings(sample: Sample) -> str:
    """Returns the openings that answers to different prompts share in the last steps, the most frequent first."""
    first, last = (_features(sample, steps) for steps in (sample.first, sample.last))
    counts = [Counter(written.start for written, _ in rows if written.start) for rows in (first, last)]
    shared = {written.start for written, features in last if features["opening"]}
    lines = []
    for text, count in (item for item in counts[1].most_common() if item[0] in shared):
        value = _mean([w.rewards[_ADVANTAGE] or 0.0 for w, _ in last if w.start == text])
        before = counts[0][text] / max(1, len(first))
        lines.append(
            f"<tr><td>{escape(text)}</td><td>{before:.1%}</td><td>{count / len(last):.1%}</td><td>{short(value)}</td></tr>"
        )
        if len(lines) == _OPENINGS:
            break
    if not lines:
        return '<p class="note">No opening is shared by answers to different prompts in the last steps.</p>'
    head = "<tr><th>stock opening</th><th>first steps</th><th>last steps</th><th>mean advantage</th></tr>"
    return f'<div class="wide" tabindex="0"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else str(steps[0])
