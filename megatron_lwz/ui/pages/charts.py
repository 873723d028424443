"""The charts of the overview: which metrics go together, drawn by the report's code, with what hover and zoom need."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_lwz.metrics import Row
from megatron_lwz.report import charts as drawing
from megatron_lwz.report.labels import LABELS
from megatron_lwz.report.text import html
from megatron_lwz.ui.run import Run

MOST_POINTS = 600
"""Points of one curve. A longer history is drawn as the means of equal stretches."""


@dataclass(frozen=True)
class Chart:
    """One chart: its metrics by key, or by prefix where it ends with /."""

    title: str
    keys: tuple[str, ...]
    unit: str = ""
    share: bool = False


@dataclass(frozen=True)
class View:
    """What of the charts is shown: a range of steps, a log scale."""

    first: float = -math.inf
    last: float = math.inf
    log: bool = False

    @classmethod
    def read(cls, query: Mapping[str, str]) -> View:
        """Reads the query of an address. What is no number counts as not given."""
        bounds = []
        for name, default in (("from", -math.inf), ("to", math.inf)):
            try:
                bounds.append(float(query.get(name, "")))
            except ValueError:
                bounds.append(default)
        first, last = (
            default if math.isnan(value) else value
            for value, default in zip(bounds, (-math.inf, math.inf), strict=True)
        )
        return cls(first, last, query.get("log") == "1")


SECTIONS: Mapping[str, Sequence[Chart]] = {
    "Learning": (
        Chart("Reward by component", ("reward/",)),
        Chart(
            "Share of rollouts",
            ("format_valid", "length_in_range", "rollout/truncated", "near_duplicates", "copied"),
            share=True,
        ),
        Chart("Sameness of siblings", ("rollout/sameness",), share=True),
        Chart(
            "Length",
            (
                "rollout/mean_length",
                "rollout/mean_length_untruncated",
                "rollout/think_length_tokens",
                "curriculum/max_new_tokens",
            ),
            "tokens",
        ),
        Chart(
            "Length sampled and trained on",
            ("length/sampled/mean", "length/trained/mean", "length/sampled/p90", "length/trained/p90"),
            "tokens",
        ),
        Chart("Curriculum: stage", ("curriculum/stage",)),
        Chart("Curriculum: success", ("curriculum/success", "curriculum/gate")),
        Chart("Curriculum: prompts", ("curriculum/pool_size", "curriculum/skipped")),
        Chart("Left out of training", ("length/excluded/",), "share", share=True),
        Chart("Held-out rewards", ("eval/reward/",)),
        Chart("Held-out quality", ("eval/quality/",)),
        Chart("Held-out texts", ("eval/text/",)),
    ),
    "Where the gradient comes from": (
        Chart("Gradient by component", ("gradient/",), share=True),
        Chart("Gradient by length", ("gradient_length/",), "tokens of the response", share=True),
        Chart("Groups without a score", ("rollout/masked_groups/",)),
        Chart("Groups without variance", ("rollout/zero_variance_groups",), share=True),
    ),
    "Training": (
        Chart("loss", ("loss", "validation/loss")),
        Chart("entropy", ("entropy",), "nats per token"),
        Chart("gradient norm", ("grad_norm",)),
        Chart("KL to the reference", ("kl",)),
        Chart("Engine against trainer", ("mismatch/kl", "mismatch/clipped", "mismatch/difference")),
        Chart("Tokens clipped", ("clip_fraction_low", "clip_fraction_high"), "share"),
        Chart("Staleness", ("rollout/staleness", "rollout/staleness/max", "rollout/token_staleness"), "updates"),
        Chart("learning rate", ("lr",)),
        Chart("accuracy", ("accuracy", "validation/accuracy"), share=True),
    ),
    "Machines": (
        Chart("Tokens per second", ("tokens_per_second",)),
        Chart("Seconds per step", ("seconds/",)),
        Chart("Engines", ("rollout/engines", "rollout/engines_up", "rollout/engines_leaving")),
        Chart("Rollouts at once", ("rollout/concurrency_limit", "rollout/waiting")),
        Chart(
            "Failures since the start",
            (
                "rollout/total_failed_groups",
                "rollout/total_failed_scores",
                "rollout/total_retried",
                "rollout/total_engines_lost",
            ),
        ),
        Chart("Stream guard", ("rollout/guard/",)),
    ),
}


def sections(runs: Sequence[Run], view: View) -> str:
    """Returns all charts that have data, by section."""
    rows = {run.name: run.rows() for run in runs}
    found = []
    for title, group in SECTIONS.items():
        drawn = "".join(draw(chart, rows, view) for chart in group)
        if drawn:
            found.append(f'<section><h2>{html(title)}</h2><div class="charts">{drawn}</div></section>')
    return "".join(found)


def draw(chart: Chart, rows: Mapping[str, Sequence[Row]], view: View) -> str:
    """Returns one chart as a figure with its points for hovering. Empty without data."""
    series = {
        name: points
        for run, history in rows.items()
        for name, points in _series(chart, history, view, f"{run}: " if len(rows) > 1 else "").items()
    }
    if not any(series.values()) or _all_zero(chart, series):
        return ""
    log = view.log and any(value > 0 for points in series.values() for _, value in points)
    if log:
        series = {name: [point for point in points if point[1] > 0] for name, points in series.items()}
        series = {name: points for name, points in series.items() if points}
    share = chart.share and not log
    figure = drawing.curves(chart.title, series, unit=chart.unit, share=share, log=log, hover=False)
    frame = drawing.curve_frame(list(series.values()), share=share, log=log)
    data = {
        "title": chart.title,
        "frame": [frame.x0, frame.x1, frame.y0, frame.y1],
        "log": log,
        "series": [[name, points] for name, points in series.items()],
        "zoomed": view.first > -math.inf or view.last < math.inf,
    }
    identity = html(chart.title.lower().replace(" ", "-"))
    return figure.replace(
        "<figure>", f'<figure id="chart-{identity}" tabindex="0" data-chart="{html(json.dumps(data))}">', 1
    )


def _series(chart: Chart, rows: Sequence[Row], view: View, prefix: str) -> dict[str, list[tuple[float, float]]]:
    keys: dict[str, str] = {}
    for wanted in chart.keys:
        if wanted.endswith("/"):
            inside = dict.fromkeys(key for row in rows for key in row if key.startswith(wanted))
            keys |= {key: key.removeprefix(wanted) for key in inside if "/" not in key.removeprefix(wanted)}
        else:
            keys[wanted] = LABELS.get(wanted, wanted.removeprefix("rollout/").removeprefix("length/").replace("_", " "))
    found = {}
    for key, name in keys.items():
        points = [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
        points = [point for point in points if view.first <= point[0] <= view.last]
        if points:
            found[prefix + name] = thinned(points)
    return found


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most MOST_POINTS points: the means of equally many neighbours."""
    stretch = -(-len(points) // MOST_POINTS)
    parts = (
        [points[at : at + stretch] for at in range(0, len(points), stretch)] if stretch > 1 else [[p] for p in points]
    )
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _all_zero(chart: Chart, series: Mapping[str, Sequence[tuple[float, float]]]) -> bool:
    """Whether a chart of counters has nothing to show."""
    quiet = chart.title.startswith(("Failures", "Left out", "Groups without a score", "KL", "Tokens clipped", "Stream"))
    return quiet and not any(value for points in series.values() for _, value in points)
