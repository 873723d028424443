"""Charts as HTML figures: curves over steps, dots, asked against written length, histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from megatron_lwz.report.axes import Frame, frame_around, short

Points = Sequence[tuple[float, float]]
Band = tuple[float, float, float, float]
"""(x, lower edge, middle, upper edge) of the values at x."""

_SMOOTH_FROM = 60
"""Minimum number of points for drawing a curve as a moving average over the faint raw values."""
_HOVERS = 150
_BINS = 24
_COLOURS = 6
"""Colours in the style sheet. Further curves begin with the first one again."""


@dataclass(frozen=True)
class LengthPoint:
    """One rollout: its asked range and its written length, in the length reward's unit."""

    lower: float
    upper: float
    written: float


def curves(
    title: str,
    series: Mapping[str, Points],
    *,
    unit: str = "",
    share: bool = False,
    x_label: str = "step",
    log: bool = False,
    hover: bool = True,
) -> str:
    """Draws named curves over training steps. `share` fixes the y axis to 0 … 1. Non-finite points are left out.

    `log`: y is logarithmic; all values must be above 0. `hover`: points tell their value without a script.
    """
    kept = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    frame = curve_frame(list(kept.values()), share=share, log=log)
    drawn = [_curve(frame, points, name, index, hover=hover) for index, (name, points) in enumerate(kept.items())]
    svg = frame.draw(drawn, x_label=escape(x_label), title=escape(title))
    return _figure(title, svg, unit=unit, legend=list(kept) if list(kept) != [title] else [])


def curve_frame(series: Sequence[Points], *, share: bool = False, log: bool = False) -> Frame:
    """Returns the frame in which `curves` draws these points."""
    every = [point for points in series for point in points]
    bounds = (0.0, 1.0) if share else None
    return frame_around([x for x, _ in every], [y for _, y in every], y_bounds=bounds, log=log)


def bands(title: str, series: Mapping[str, Sequence[Band]], *, unit: str, x_label: str) -> str:
    """Draws named bands with a middle line: the first filled, the others as outlines over it. Empty without data."""
    kept = {name: points for name, points in series.items() if points}
    every = [point for points in kept.values() for point in points]
    if not every:
        return ""
    frame = frame_around([x for x, *_ in every], [y for _, *ys in every for y in ys], zero=True)
    drawn = []
    for index, (name, points) in enumerate(kept.items()):
        low, high = ([(point[0], point[side]) for point in points] for side in (1, 3))
        if index == 0:
            outline = _path(frame, [*low, *reversed(high)])
            drawn.append(f'<path class="fill s{index}" d="{outline}Z"/>')
        else:
            drawn += [f'<path class="line edge s{index}" d="{_path(frame, side)}"/>' for side in (low, high)]
        drawn.append(_curve(frame, [(point[0], point[2]) for point in points], name, index, smooth=False))
    svg = frame.draw(drawn, x_label=escape(x_label), title=escape(title))
    return _figure(title, svg, unit=unit, legend=list(kept))


def lengths_scatter(title: str, points: Sequence[LengthPoint], *, unit: str, largest: float) -> str:
    """Plots asked length (x, middle of the range) against written length (y). The bars are the asked ranges."""
    frame = Frame(0.0, largest, 0.0, largest)
    corner = f"M{frame.x(0):.1f},{frame.y(0):.1f} L{frame.x(largest):.1f},{frame.y(largest):.1f}"
    parts = [f'<path class="diagonal" d="{corner}"/>']
    for lower, upper in sorted({(p.lower, p.upper) for p in points}):
        x = frame.x((lower + upper) / 2)
        parts.append(
            f'<line class="range" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(lower):.1f}" y2="{frame.y(upper):.1f}"/>'
        )
    for p in points:
        x, y = frame.x((p.lower + p.upper) / 2), frame.y(min(p.written, largest))
        kind = "hit" if p.lower <= p.written <= p.upper else "miss"
        note = f"asked {p.lower:g} to {p.upper:g}, wrote {p.written:g}"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{note}</title></circle>')
    hits = sum(p.lower <= p.written <= p.upper for p in points)
    note = f"{hits} of {len(points)} in the asked range"
    return _figure(title, frame.draw(parts, x_label=f"asked, {escape(unit)}", title=escape(title)), unit=note)


def scatter(title: str, samples: Mapping[str, Points], *, x_label: str) -> str:
    """Draws one dot per point, coloured by named sample. Non-finite points are left out. Empty without data."""
    kept = {name: [p for p in points if math.isfinite(p[0] + p[1])] for name, points in samples.items()}
    every = [point for points in kept.values() for point in points]
    if not every:
        return ""
    frame = frame_around([x for x, _ in every], [y for _, y in every])
    dots = [
        f'<circle class="point s{index}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5"/>'
        for index, points in enumerate(kept.values())
        for x, y in points
    ]
    svg = frame.draw(dots, x_label=escape(x_label), title=escape(title))
    return _figure(title, svg, legend=list(kept))


def histogram(title: str, samples: Mapping[str, Sequence[float]], *, x_label: str) -> str:
    """Draws the distribution of written lengths, as a share of each named sample. All samples use the same bins."""
    kept = {name: values for name, values in samples.items() if values}
    if not kept:
        return ""
    largest = max(max(values) for values in kept.values()) or 1.0
    edges = [largest * index / _BINS for index in range(_BINS + 1)]
    shares = {name: _shares(values, largest) for name, values in kept.items()}
    frame = Frame(0.0, largest, 0.0, max(max(share) for share in shares.values()) * 1.06)
    drawn = []
    for index, share in enumerate(shares.values()):
        corners = [(edge, height) for low, height in enumerate(share) for edge in (edges[low], edges[low + 1])]
        outline = " L".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in [(0.0, 0.0), *corners, (largest, 0.0)])
        drawn.append(f'<path class="fill s{index}" d="M{outline}Z"/><path class="line s{index}" d="M{outline}"/>')
    svg = frame.draw(drawn, x_label=escape(x_label), title=escape(title))
    return _figure(title, svg, unit="share of rollouts", legend=list(kept))


def _curve(frame: Frame, points: Points, name: str, index: int, *, smooth: bool = True, hover: bool = True) -> str:
    index %= _COLOURS
    parts = []
    line = _moving_average(points) if smooth and len(points) >= _SMOOTH_FROM else points
    if line is not points:
        parts.append(f'<path class="line faint s{index}" d="{_path(frame, points)}"/>')
    parts.append(f'<path class="line s{index}" d="{_path(frame, line)}"/>')
    if len(points) == 1:
        parts.append(f'<circle class="dot s{index}" cx="{frame.x(points[0][0])}" cy="{frame.y(points[0][1])}" r="3"/>')
    for x, y in points[:: math.ceil(len(points) / _HOVERS)] if hover else ():
        note = f"{escape(name)}, step {x:g}: {short(y)}"
        parts.append(
            f'<circle class="hover" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="6"><title>{note}</title></circle>'
        )
    return "".join(parts)


def _path(frame: Frame, points: Points) -> str:
    """Returns a polyline. Values outside a fixed y range are drawn at its edge."""
    inside = [(frame.x(x), frame.inside(y)) for x, y in points]
    return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in inside)


def _moving_average(points: Points) -> Points:
    half = max(1, len(points) // 40)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    bounds = [(max(0, i - half), min(len(points), i + half + 1)) for i in range(len(points))]
    return [(x, (sums[end] - sums[start]) / (end - start)) for (x, _), (start, end) in zip(points, bounds, strict=True)]


def _shares(values: Sequence[float], largest: float) -> list[float]:
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int(value / largest * _BINS))] += 1
    return [count / len(values) for count in counts]


def _figure(title: str, svg: str, *, unit: str = "", legend: Sequence[str] = ()) -> str:
    keys = "".join(f'<span class="key s{index % _COLOURS}">{escape(name)}</span>' for index, name in enumerate(legend))
    small = f" <small>{escape(unit)}</small>" if unit else ""
    below = f'<div class="legend">{keys}</div>' if keys else ""
    return f"<figure><figcaption>{escape(title)}{small}</figcaption>{below}{svg}</figure>"
