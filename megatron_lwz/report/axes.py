"""The frame of a chart: scales, ticks and grid, as SVG text. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 238
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 10, 44


@dataclass(frozen=True)
class Frame:
    """A drawing area with data ranges (`x0`, `x1`), (`y0`, `y1`); `x` and `y` turn data into SVG coordinates.

    `log`: y is drawn on a logarithmic scale, and `y0`, `y1` are powers of ten: 2 means 100. `whole`: only whole numbers of y
    are marked.
    """

    x0: float
    x1: float
    y0: float
    y1: float
    log: bool = False
    whole: bool = False

    def x(self, value: float) -> float:
        """Returns the distance from the left edge in pixels."""
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Returns the distance from the top edge in pixels. With `log`, `value` must be above 0."""
        value = math.log10(value) if self.log else value
        return HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - _TOP - _BOTTOM)

    def inside(self, value: float) -> float:
        """Returns the distance from the top edge, at the edge for a value outside the range."""
        low, high = (10**self.y0, 10**self.y1) if self.log else (self.y0, self.y1)
        return self.y(min(max(value, low), high))

    def draw(self, content: Iterable[str], *, x_label: str, title: str) -> str:
        """Returns the finished `<svg>`: grid and tick labels under `content`. `title` must be escaped already."""
        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">']
        bottom = HEIGHT - _BOTTOM
        marks = log_ticks(self.y0, self.y1) if self.log else ticks(self.y0, self.y1, 4, whole=self.whole)
        for value, text in zip(marks, _tick_labels(marks), strict=True):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
        for value in ticks(self.x0, self.x1, 6, whole=True):
            x = self.x(value)
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{short(value)}</text>')
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{x_label}</text>')
        return "".join([*parts, *content, "</svg>"])


def frame_around(
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    y_bounds: tuple[float, float] | None = None,
    zero: bool = False,
    log: bool = False,
) -> Frame:
    """Returns a frame that shows all points, with a small margin above and below. `zero` keeps y = 0 in the frame."""
    x0, x1 = _widen(min(xs), max(xs))
    if log:
        low, high = math.log10(min(ys)), math.log10(max(ys))
        air = max(0.06 * (high - low), 0.02)
        return Frame(x0, x1, low - air, high + air, log=True)
    if y_bounds is not None:
        return Frame(x0, x1, *y_bounds)
    low, high = min(ys), max(ys)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = _widen(low, high)
    air = 0.06 * (high - low)
    whole = high - low >= 1 and all(float(y).is_integer() for y in ys)  # such as stages: there is none between two
    return Frame(x0, x1, low if zero and low == 0 else low - air, high + air, whole=whole)


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Returns about `count` round numbers between `low` and `high`: multiples of 1, 2, 2.5 or 5 times a power of ten.

    `whole`: whole numbers only.
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [m * power for m in (1, 2, 2.5, 5, 10)]
    if whole:
        steps = [step for step in steps if step % 1 == 0] or [1.0]
    step = next((step for step in steps if step >= raw * 0.999), steps[-1])
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns values to mark between 10^low and 10^high: powers of ten, or 1, 2 and 5 times them in a small range."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    every = max(1, -(-len(powers) // 6))
    factors = (1, 2, 5) if high - low < 2 else (1,)
    found = [factor * 10.0**power for power in powers if power % every == 0 for factor in factors]
    kept = [value for value in found if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    return kept or [10**low, 10**high]


def short(value: float) -> str:
    """Formats a number in a few characters: 12,000 is 12k, 0.00031 is 3.1e-4."""
    size = abs(value)
    if size < 1e-15:
        return "0"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1e-3:
        return f"{value:.4g}" if size >= 1 else f"{value:.3g}" if size >= 1e-2 else f"{value:.2g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _tick_labels(values: Sequence[float]) -> list[str]:
    """Labels ticks by `short`, or with more decimals where `short` makes two labels equal (1.00001 and 1.00002)."""
    labels = [short(value) for value in values]
    if len(set(labels)) == len(labels):
        return labels
    step = values[1] - values[0]
    return [f"{value:.{max(0, -math.floor(math.log10(step)))}f}" for value in values]


def _widen(low: float, high: float) -> tuple[float, float]:
    """Widens an empty range: a constant gets a tenth of its size on both sides, 0 becomes the range 0 … 1.

    Ends that differ by rounding alone are a constant.
    """
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    if low == 0:
        return 0.0, 1.0
    half = abs(low) * 0.1
    return low - half, high + half
