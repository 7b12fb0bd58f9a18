"""Scatter charts of named points with whiskers, such as the cost and the quality of every mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thinktwice.pages.charts import nice_ticks, number
from thinktwice.pages.drawing import AXIS, FAINT, GRID, INK, Drawing, Shape, group, line, polyline, shape, text

LABEL_HEIGHT = 13.0
LABEL_WIDTH = 6.1  # of a character
LOG_TICKS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0)


@dataclass(frozen=True)
class Point:
    """One named point with an optional interval of y and the text shown on hover."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    color: str = "#3b6fd4"
    tip: str = ""


def scatter_chart(
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    zero: bool = True,
    frontier: bool = True,
    log_x: bool = False,
    width: int = 760,
    height: int = 420,
) -> Drawing:
    """Points with their names beside them, moved apart if they would overlap.

    With ``frontier`` a line joins the points that no point with a smaller x has a smaller y than (less is better on both).
    ``log_x`` is for ratios from 1 to 128, such as forward passes per row.
    """
    left, right, top, bottom = 72, 170, 30 if title else 14, 48
    if not points:
        return Drawing(width, height, "", ())
    ys = [v for p in points for v in (p.y, p.low, p.high) if v is not None] + ([0.0] if zero else [])
    y_ticks = nice_ticks(min(ys), max(ys))
    reach = min(p.x for p in points), max(p.x for p in points)
    x_ticks = _log_ticks(*reach) if log_x else nice_ticks(*reach)
    scaled = math.log if log_x else float
    x0, x1 = scaled(x_ticks[0]), scaled(x_ticks[-1])

    def px(x: float) -> float:
        return left + (scaled(x) - x0) / (x1 - x0) * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - top - bottom)

    out: list[Shape] = []
    for y in y_ticks:
        out.append(line(left, py(y), width - right, py(y), AXIS if zero and y == 0 else GRID))
        out.append(text(left - 8, py(y) + 4, number(y, y_ticks), "end", FAINT))
    for x in x_ticks:
        out.append(line(px(x), top, px(x), height - bottom, GRID))
        out.append(text(px(x), height - bottom + 18, f"{x:g}" if log_x else number(x, x_ticks), "middle", FAINT))
    if title:
        out.append(text(left, 16, title, "start", INK, bold=True))
    out.append(text((left + width - right) / 2, height - 6, x_label, "middle", INK))
    out.append(text(13, (top + height - bottom) / 2, y_label, "middle", INK, -90))
    if frontier:
        out.append(polyline([(px(p.x), py(p.y)) for p in best_of(points)], AXIS, "5 4", 1.5))
    for p in points:
        drawn = [shape("circle", cx=px(p.x), cy=py(p.y), r=4.0, fill=p.color)]
        if p.low is not None and p.high is not None:
            drawn.insert(0, line(px(p.x), py(p.low), px(p.x), py(p.high), p.color))
        out.append(group(f"{p.name}: {p.tip}", *drawn))
    positions = _label_positions(
        [(px(p.x) + 8, py(p.y) + 4, len(p.name) * LABEL_WIDTH) for p in points], top + 10, height - bottom
    )
    for p, (x, y) in zip(points, positions, strict=True):
        if abs(y - py(p.y) - 4) > LABEL_HEIGHT / 2:
            out.append(line(px(p.x) + 4, py(p.y), x - 1, y - 4, GRID))
        out.append(text(x, y, p.name, "start", p.color, halo=True))
    return Drawing(width, height, title or f"{y_label} by {x_label}", out)


def _log_ticks(low: float, high: float) -> list[float]:
    first = max((i for i, t in enumerate(LOG_TICKS) if t <= low), default=0)
    last = next((i for i, t in enumerate(LOG_TICKS) if t >= high), len(LOG_TICKS) - 1)
    return list(LOG_TICKS[first : max(last, first + 1) + 1])


def best_of(points: Sequence[Point]) -> list[Point]:
    """The points whose y no point with the same or a smaller x beats, by ascending x."""
    out: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x, p.y)):
        if not out or p.y < out[-1].y:
            out.append(p)
    return out


def _label_positions(labels: list[tuple[float, float, float]], low: float, high: float) -> list[tuple[float, float]]:
    """Positions of labels (x, y, width): each gets the free height nearest to its point, from left to right."""
    occupied = [(x - 12, y, 8.0) for x, y, _ in labels]  # the points themselves
    out: list[tuple[float, float]] = [(0.0, 0.0)] * len(labels)
    for i in sorted(range(len(labels)), key=lambda i: (labels[i][0], labels[i][1])):
        x, y, width = labels[i]

        def free(at: float, x: float = x, width: float = width) -> bool:
            return low <= at <= high and all(
                abs(at - b) >= LABEL_HEIGHT or x >= a + w + 4 or a >= x + width + 4 for a, b, w in occupied
            )

        steps = (k * LABEL_HEIGHT / 2 * sign for k in range(80) for sign in (1, -1))
        position = next((y + step for step in steps if free(y + step)), y)
        occupied.append((x, position, width))
        out[i] = x, position
    return out
