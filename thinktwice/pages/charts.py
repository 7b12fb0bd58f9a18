"""Line charts and dot charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from thinktwice.pages.drawing import AXIS, FAINT, GRID, INK, Drawing, Shape, corners, group, line, polyline, shape, text


@dataclass(frozen=True)
class Mark:
    """One value at x with an optional interval and the text shown on hover."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tip: str = ""


@dataclass(frozen=True)
class Series:
    """Marks of one name; with ``band``, :func:`line_chart` draws their intervals as an area behind the lines."""

    name: str
    color: str
    marks: Sequence[Mark]
    dashed: bool = False
    band: bool = False


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low..high in about ``count`` steps."""
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    categories: Sequence[str] = (),
    diagonal: bool = False,
    width: int = 520,
    height: int = 330,
) -> Drawing:
    """Lines with marks and whiskers, or with bands. With ``categories`` x is a position 0..n-1; with ``diagonal`` both
    axes share a range and the diagonal is drawn."""
    left, right, top, bottom = 78, 14, 12, 62 if categories else 48
    marks = [m for s in series for m in s.marks]
    if not marks:
        return Drawing(width, height, "", ())
    ys = [v for m in marks for v in (m.y, m.low, m.high) if v is not None]
    xs = [m.x for m in marks]
    if diagonal:
        xs = ys = [*xs, *ys]
    y_ticks = nice_ticks(min(ys), max(ys))
    x_ticks = list(map(float, range(len(categories)))) if categories else nice_ticks(min(xs), max(xs))
    x0, x1 = (x_ticks[0] - 0.5, x_ticks[-1] + 0.5) if categories else (x_ticks[0], x_ticks[-1])
    y0, y1 = y_ticks[0], y_ticks[-1]

    def px(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom)

    out: list[Shape] = []
    for y in y_ticks:
        out.append(line(left, py(y), width - right, py(y), GRID))
        out.append(text(left - 8, py(y) + 4, number(y, y_ticks), "end", FAINT))
    for i, x in enumerate(x_ticks):
        name = categories[i] if categories else number(x, x_ticks)
        if not categories:
            out.append(line(px(x), top, px(x), height - bottom, GRID))
        turn = -28.0 if len(categories) > 6 else 0.0
        out.append(text(px(x), height - bottom + 18, name, "end" if turn else "middle", FAINT, turn))
    if diagonal:
        low, high = max(x0, y0), min(x1, y1)
        out.append(line(px(low), py(low), px(high), py(high), "#b4bac4", "4 4"))
    out.append(text((left + width - right) / 2, height - 4, x_label, "middle", INK))
    out.append(text(13, (top + height - bottom) / 2, y_label, "middle", INK, -90))
    for s in series:
        ends = [(m.x, m.low, m.high) for m in s.marks if s.band and m.low is not None and m.high is not None]
        if ends:  # behind all lines
            outline = [(x, low) for x, low, _ in ends] + [(x, high) for x, _, high in reversed(ends)]
            area = corners([(px(x), py(y)) for x, y in outline])
            out.append(shape("polygon", points=area, fill=s.color, fill_opacity="0.15"))
    shift = 7 if categories else 0
    for position, s in enumerate(series):
        dx = (position - (len(series) - 1) / 2) * shift
        points = [(px(m.x) + dx, py(m.y)) for m in s.marks]
        out.append(polyline(points, s.color, "5 4" if s.dashed else ""))
        for m, (x, y) in zip(s.marks, points, strict=True):
            drawn = [shape("circle", cx=x, cy=y, r=1.8 if s.band else 3.5, fill=s.color)]
            if m.low is not None and m.high is not None and not s.band:
                drawn.insert(0, line(x, py(m.low), x, py(m.high), s.color))
            out.append(group(f"{s.name}: {m.tip}", *drawn))
    return Drawing(width, height, f"{y_label} by {x_label}", out)


def dot_chart(
    rows: Sequence[tuple[str, str]],
    series: Sequence[Series],
    *,
    x_label: str,
    zero: bool = False,
    width: int = 1080,
    row_height: int = 58,
) -> Drawing:
    """One row per (name, remark), one dot with its interval per series; mark.y is the row, mark.x the value."""
    left, right, top, bottom = 210, 24, 6, 40
    marks = [m for s in series for m in s.marks]
    if not marks:
        return Drawing(width, row_height, "", ())
    values = [v for m in marks for v in (m.x, m.low, m.high) if v is not None] + ([0.0] if zero else [])
    ticks = nice_ticks(min(values), max(values), 7)
    height = top + bottom + row_height * len(rows)

    def px(x: float) -> float:
        return left + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (width - left - right)

    out: list[Shape] = []
    for x in ticks:
        out.append(line(px(x), top, px(x), height - bottom, AXIS if zero and x == 0 else GRID))
        out.append(text(px(x), height - bottom + 17, number(x, ticks), "middle", FAINT))
    for i, (name, remark) in enumerate(rows):
        y = top + row_height * (i + 0.5)
        if i:
            out.append(line(0, y - row_height / 2, width - right, y - row_height / 2, GRID))
        out.append(text(left - 16, y - 1, name, "end", INK, bold=True))
        out.append(text(left - 16, y + 14, remark, "end", FAINT))
    for position, s in enumerate(series):
        dy = (position - (len(series) - 1) / 2) * 14
        for m in s.marks:
            y = top + row_height * (m.y + 0.5) + dy
            drawn = [shape("circle", cx=px(m.x), cy=y, r=4.5, fill=s.color)]
            if m.low is not None and m.high is not None:
                whisker = shape(
                    "line", x1=px(m.low), y1=y, x2=px(m.high), y2=y,
                    stroke=s.color, stroke_width=3.0, stroke_opacity="0.45", stroke_linecap="round",
                )  # fmt: skip
                drawn.insert(0, whisker)
            out.append(group(f"{s.name}: {m.tip}", *drawn))
    out.append(text((left + width - right) / 2, height - 4, x_label, "middle", INK))
    return Drawing(width, height, x_label, out)


def number(value: float, ticks: Sequence[float]) -> str:
    """A value with as many decimals as its ticks need."""
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(round(step, decimals) - step) > 1e-9 * max(step, 1e-12):
        decimals += 1  # steps of 2.5
    return f"{value:,.{decimals}f}".replace("-0" + "." + "0" * decimals if decimals else "-0", "0")


def spark_line(points: Sequence[tuple[float, float]], *, width: int = 120, height: int = 26) -> Drawing:
    """A line without axes for a table cell, from its lowest to its highest value; hovering shows both ends."""
    if not points:
        return Drawing(width, height, "", (), fixed=True)
    xs, ys = zip(*points, strict=True)
    reach_x, reach_y = max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0
    placed = [
        (4 + (x - min(xs)) / reach_x * (width - 8), height - 4 - (y - min(ys)) / reach_y * (height - 8))
        for x, y in points
    ]
    end = shape("circle", cx=placed[-1][0], cy=placed[-1][1], r=2.6, fill=INK)
    tip = f"{ys[0]:.4f} to {ys[-1]:.4f}"
    return Drawing(width, height, tip, [group(tip, polyline(placed, "#2f6fdb", width=1.6), end)], fixed=True)
