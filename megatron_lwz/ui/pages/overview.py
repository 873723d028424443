"""The overview of a run: alarms, figures, curves; and the list of runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from megatron_lwz.metrics import Row, summarize
from megatron_lwz.report.axes import short
from megatron_lwz.report.labels import LABELS
from megatron_lwz.report.text import html
from megatron_lwz.ui.alarms import Alarm, find_alarms
from megatron_lwz.ui.pages import charts
from megatron_lwz.ui.pages.layout import note
from megatron_lwz.ui.pages.layout import page as whole_page
from megatron_lwz.ui.run import Run
from megatron_lwz.ui.signals import Signals, read_signals

_TILES = ("format_valid", "length_in_range", "rollout/mean_length", "rollout/truncated", "entropy", "tokens_per_second")
_RECENT = 900.0
"""Seconds without a change after which a run with a writer counts as quiet."""


def page(run: Run, query: Mapping[str, str]) -> str:
    """Returns the page of one run. Its part `content` is replaced whenever the run writes something."""
    body = f'<div id="content">{content(run, query)}</div>'
    attributes = f'data-live="/runs/{html(run.name)}/events" data-content="/runs/{html(run.name)}/live" data-run="{html(run.name)}"'
    crumbs = [("Runs", "/")]
    return whole_page(run.title, body, crumbs=crumbs, kind="overview", scripts=("charts.js",), attributes=attributes)


def content(run: Run, query: Mapping[str, str]) -> str:
    """Returns what changes while the run goes on."""
    rows = run.rows()
    index = run.index()
    signals = read_signals(index) if index is not None else Signals()
    view = charts.View.read(query)
    parts = [_head(run, rows), _alarms(run, rows, signals)]
    if run.trouble:
        parts.append(f'<p class="alarm">{html(run.trouble)}</p>')
    parts.append(_tiles(rows))
    parts.append(_tools(run, view, index.counts() if index else None))
    parts.append(charts.sections([run], view) or note("No step is finished yet. The curves appear with the first one."))
    return "".join(parts)


def runs_page(runs: Sequence[Run]) -> str:
    """Returns the list of all runs."""
    lines = []
    for run in runs:
        rows = run.rows()
        index = run.index()
        alarms = find_alarms(rows, read_signals(index) if index else Signals())
        worst = "serious" if any(a.serious for a in alarms) else "warn" if alarms else "fine"
        said = f"{len(alarms)} alarm{'s' if len(alarms) != 1 else ''}" if alarms else "none"
        step = short(rows[-1]["step"]) if rows else "0"
        lines.append(
            f'<tr><td><input type="checkbox" name="run" value="{html(run.name)}" aria-label="compare {html(run.name)}"></td>'
            f'<td><a href="/runs/{html(run.name)}"><bdi>{html(run.title)}</bdi></a><br>'
            f"<small>{html(run.paths.root)}</small></td>"
            f"<td>{step} of {html(run.setting('training.steps', '?'))}</td><td>{_state(run)}</td>"
            f'<td><span class="badge {worst}">{said}</span></td></tr>'
        )
    head = "<tr><th></th><th>run</th><th>steps</th><th>state</th><th>alarms</th></tr>"
    table = f'<table class="runs"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'
    button = "<p><button>Compare</button></p>" if len(runs) > 1 else ""
    body = (
        f'<h1>Runs</h1><form action="/compare" method="get"><div class="wide" tabindex="0">{table}</div>{button}</form>'
    )
    return whole_page("Runs", body, kind="runs")


def _head(run: Run, rows: Sequence[Row]) -> str:
    done = int(rows[-1]["step"]) if rows else 0
    total = run.setting("training.steps", "?")
    return f'<h1><bdi>{html(run.title)}</bdi></h1><p class="lead">step {done} of {html(total)} · {_state(run)} · {html(run.paths.root)}</p>'


def _state(run: Run) -> str:
    changed = max(time_ns for _, time_ns in run.stamp()) / 1e9
    ago = max(0.0, time.time() - changed)
    when = f'<time data-at="{changed:.0f}">{_ago(ago)}</time>'
    if run.is_running():
        return (
            f"running, wrote {when}"
            if ago < _RECENT
            else f'<span class="badge warn">a process holds it, wrote {when}</span>'
        )
    return f"not running, wrote {when}"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _alarms(run: Run, rows: Sequence[Row], signals: Signals) -> str:
    alarms = find_alarms(rows, signals)
    if not alarms:
        said = '<span class="badge fine">no alarm</span> Nothing that the rules know looks wrong.'
        return f'<section aria-label="Alarms"><p class="quiet">{said}</p></section>'
    items = "".join(_alarm(run, alarm) for alarm in alarms)
    return f'<section aria-label="Alarms"><h2 class="first">Alarms</h2><ul class="alarms">{items}</ul></section>'


def _alarm(run: Run, alarm: Alarm) -> str:
    links = []
    if alarm.chart:
        links.append(f'<a href="#chart-{html(alarm.chart.lower().replace(" ", "-"))}">Chart</a>')
    if alarm.rollouts:
        links.append(f'<a href="/runs/{html(run.name)}/rollouts?{html(alarm.rollouts)}">Rollouts</a>')
    kind = "serious" if alarm.serious else "warn"
    said = "Serious" if alarm.serious else "Look at it"
    return (
        f'<li class="{kind}"><h3><span class="badge {kind}">{said}</span> {html(alarm.title)}</h3><p>{html(alarm.seen)}</p>'
        f"<dl><dt>Means</dt><dd>{html(alarm.means)}</dd><dt>Do</dt><dd>{html(alarm.advice)}</dd></dl>"
        f'<p class="links">{" ".join(links)}</p></li>'
    )


def _tiles(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    summary = summarize(rows)
    first, last = summary["first"], summary["last"]
    keys = [key for key in _TILES if key in last and math.isfinite(last[key])]
    names = {"rollout/mean_length": "length, tokens"}
    cells = [
        f'<div class="tile">{html(names.get(key, LABELS.get(key, key)))}'
        f'<b><span class="from">{short(first[key]) if key in first else "–"} →</span> {short(last[key])}</b></div>'
        for key in keys
    ]
    return (
        f'<div class="tiles" role="group" aria-label="First steps → last steps">{"".join(cells)}</div>' if cells else ""
    )


def _tools(run: Run, view: charts.View, counts: tuple[int, int] | None) -> str:
    parts = []
    if counts is not None:
        indexed = "" if counts[0] == counts[1] else f" ({counts[0]} of {counts[1]} indexed so far)"
        parts.append(f'<a class="button" href="/runs/{html(run.name)}/rollouts">Read {counts[1]} rollouts{indexed}</a>')
    pressed = "true" if view.log else "false"
    parts.append(f'<button type="button" id="log" aria-pressed="{pressed}">Log scale</button>')
    parts.append('<button type="button" id="all-steps">All steps</button>')
    parts.append(
        '<span class="hint">Drag in a chart to zoom, double click to see all. Arrow keys move through the values.</span>'
    )
    return f'<div class="tools">{"".join(parts)}</div>'
