"""Line charts as inline SVG: no script, no fonts, colours from the page's style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

__all__ = ["line_chart", "nice_number"]

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 24
N_TICKS = 4
# Weight of the past in the smoothed line, for a curve of SMOOTH_POINTS or more.
SMOOTHING, SMOOTH_POINTS = 0.9, 30


def line_chart(steps: Sequence[float], values: Sequence[float], *, title: str) -> str:
    """One curve over the steps: raw values thin, a running mean bold, the last value as text.

    Values that are not finite are left out; with fewer than two points there is only a note.
    """
    points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    name = html.escape(title)
    if len(points) < 2:
        return f'<figure class="chart"><figcaption><b>{name}</b> no data</figcaption></figure>'
    ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    scale = _Scale(points[0][0], points[-1][0], ticks[0], ticks[-1])
    smooth = _running_mean(points)
    body = [_grid(scale, ticks)]
    if smooth is not points:
        body.append(f'<path class="raw" d="{_path(scale, points)}"/>')
    base = f"V{HEIGHT - BOTTOM}H{scale.x(smooth[0][0]):.1f}Z"
    body.append(f'<path class="area" d="{_path(scale, smooth)}{base}"/>')
    body.append(f'<path class="line" d="{_path(scale, smooth)}"/>')
    x, y = smooth[-1]
    body.append(f'<circle class="dot" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="3.5"/>')
    return (
        f'<figure class="chart"><figcaption><b>{name}</b><span>{nice_number(points[-1][1])}</span>'
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{name} over the steps">{"".join(body)}</svg></figure>'
    )


def nice_number(value: float) -> str:
    """A number with about three digits: 0.0123, 1.5, 1,230, 4.5e6."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class _Scale:
    """From data to pixels."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float) -> None:
        self.x0, self.x1, self.y0, self.y1 = x0, x1, y0, y1

    def x(self, value: float) -> float:
        """Column of a step."""
        span = (self.x1 - self.x0) or 1.0
        return LEFT + (value - self.x0) / span * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Row of a value."""
        span = (self.y1 - self.y0) or 1.0
        return HEIGHT - BOTTOM - (value - self.y0) / span * (HEIGHT - TOP - BOTTOM)


def _grid(scale: _Scale, ticks: Sequence[float]) -> str:
    """Horizontal lines with their values, and the first and last step."""
    parts = []
    for tick in ticks:
        y = scale.y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{nice_number(tick)}</text>'
        )
    bottom = HEIGHT - 6
    parts.append(f'<text x="{LEFT}" y="{bottom}">{scale.x0:g}</text>')
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{bottom}" text-anchor="end">step {scale.x1:g}</text>'
    )
    return "".join(parts)


def _path(scale: _Scale, points: Sequence[tuple[float, float]]) -> str:
    """SVG path data of a polyline."""
    return "M" + "L".join(f"{scale.x(x):.1f} {scale.y(y):.1f}" for x, y in points)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        pad = abs(high) * 0.5 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / (N_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _running_mean(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Exponential mean of a long curve, unbiased at its start; a short one as it is."""
    if len(points) < SMOOTH_POINTS:
        return points
    mean, weight, result = 0.0, 0.0, []
    for x, y in points:
        mean = SMOOTHING * mean + (1.0 - SMOOTHING) * y
        weight = SMOOTHING * weight + 1.0 - SMOOTHING
        result.append((x, mean / weight))
    return result
