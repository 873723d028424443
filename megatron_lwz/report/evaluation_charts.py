"""Charts of evaluations: asked against written length on logarithmic axes, estimates with intervals, a matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from megatron_lwz.evaluation.statistics import Estimate
from megatron_lwz.report.axes import HEIGHT, WIDTH, frame_around, short, ticks

_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 10, 44
_ROW = 26


def figure(title: str, content: str, note: str = "") -> str:
    """Returns a captioned figure. `content` is HTML already."""
    small = f" <small>{escape(note)}</small>" if note else ""
    return f"<figure><figcaption>{escape(title)}{small}</figcaption>{content}</figure>"


def length_scatter(title: str, points: Sequence[tuple[float, float]], curve: Sequence[tuple[float, float]] = ()) -> str:
    """Plots asked length (x) against written length (y), both logarithmic; the dashes are y = x, the line is `curve`.

    Points of length 0 lie on the lower edge.
    """
    kept = [(x, y) for x, y in points if x > 0]
    if not kept:
        return ""
    sizes = [size for point in kept for size in point if size > 0]
    low, high = math.floor(math.log10(min(sizes)) * 2) / 2, math.ceil(math.log10(max(sizes) * 1.05) * 2) / 2

    def across(value: float) -> float:
        return _LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        place = max(math.log10(value), low) if value > 0 else low
        return HEIGHT - _BOTTOM - (place - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    bottom, right = up(0), WIDTH - _RIGHT
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for mark in _log_ticks(low, high):
        x, y = across(mark), up(mark)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{short(mark)}</text>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{short(mark)}</text>')
    parts.append(f'<path class="diagonal" d="M{_LEFT},{bottom} L{right},{_TOP}"/>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    for x, y in kept:
        note = f"asked {x:g}, wrote {y:g}"
        parts.append(
            f'<circle class="dot s0" fill-opacity="0.45" cx="{across(x):.1f}" cy="{up(y):.1f}" r="4"><title>{note}</title></circle>'
        )
    if len(curve) > 1:
        line = " L".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve if x > 0)
        parts.append(f'<path class="line s1" d="M{line}"/>')
    middle = (_LEFT + right) / 2
    label = "length asked, words + CJK characters"
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{label}</text></svg>')
    return figure(title, "".join(parts), "written over asked; the line is the mean of each group" if curve else "")


def intervals(title: str, estimates: Mapping[str, Estimate], *, note: str = "95 % intervals") -> str:
    """Draws one dot with its interval per name, on one axis."""
    if not estimates:
        return ""
    low = min(e.low for e in estimates.values())
    high = max(e.high for e in estimates.values())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    left, right = 190, WIDTH - _RIGHT - 40
    height = _ROW * len(estimates) + 34

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for mark in ticks(low, high, 4):
        x = across(mark)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 26}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 10}" text-anchor="middle">{short(mark)}</text>')
    for number, (name, value) in enumerate(estimates.items()):
        y = 4 + _ROW * (number + 0.5)
        parts.append(
            f'<text class="tick" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name[:30])}</text>'
            f'<line class="line s0" x1="{across(value.low):.1f}" x2="{across(value.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="dot s0" cx="{across(value.value):.1f}" cy="{y:.1f}" r="4"/>'
            f'<text class="tick" x="{WIDTH - 4}" y="{y + 4:.1f}" text-anchor="end">{short(round(value.value, 3))}</text>'
        )
    return figure(title, "".join(parts) + "</svg>", note)


def positions(title: str, estimates: Sequence[Estimate | None], *, worse: int | None, note: str, x_label: str) -> str:
    """Draws means with their intervals over the parts of a text, from 1. `worse` marks the part from which it decays."""
    there = [(part, e) for part, e in enumerate(estimates, start=1) if e is not None]
    if len(there) < 2:
        return ""
    frame = frame_around([part for part, _ in there], [side for _, e in there for side in (e.low, e.high)])

    def path(points: Iterable[tuple[int, float]]) -> str:
        return "M" + " L".join(f"{frame.x(part):.1f},{frame.y(value):.1f}" for part, value in points)

    outline = path([*((part, e.low) for part, e in there), *((part, e.high) for part, e in reversed(there))])
    middle = path((part, e.value) for part, e in there)
    drawn = [f'<path class="fill s0" d="{outline}Z"/><path class="line s0" d="{middle}"/>']
    for part, e in there:
        hover = f"part {part}: {short(e.value)} ({short(e.low)} … {short(e.high)}), n = {e.count}"
        place = f'cx="{frame.x(part):.1f}" cy="{frame.y(e.value):.1f}"'
        drawn.append(f'<circle class="dot s0" {place} r="4"><title>{hover}</title></circle>')
    if worse is not None:
        drawn.append(f'<path class="line edge s1" d="{path([(worse, frame.y0), (worse, frame.y1)])}"/>')
    return figure(title, frame.draw(drawn, x_label=escape(x_label), title=escape(title)), note)


def matrix(title: str, names: Sequence[str], shares: Sequence[Sequence[float | None]], *, note: str = "") -> str:
    """Returns a table of shares, row against column. A cell without a value is empty."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = []
    for name, row in zip(names, shares, strict=True):
        cells = "".join(
            "<td></td>"
            if share is None
            else f'<td style="background: color-mix(in srgb, var(--good) {100 * share * 0.5:.0f}%, transparent)">{share:.2f}</td>'
            for share in row
        )
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return figure(
        title, f'<div class="wide" tabindex="0"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>', note
    )


def _log_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten between 10^low and 10^high; only the powers if there would be too many."""
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    marks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    return [mark for mark in marks if low - 1e-9 <= math.log10(mark) <= high + 1e-9]
