"""Charts as inline SVG: no script, no font file, nothing to load. Hovering a mark shows its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

FONT = "font-family:inherit;font-size:12px"
GRID, INK, FAINT = "#e6e8ec", "#30343b", "#7a818c"


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
    """Marks of one name; ``band`` draws their intervals as an area behind the lines, in :func:`line_chart`."""

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
) -> str:
    """Lines with marks and whiskers, or with bands. With ``categories`` x is a position 0..n-1; with ``diagonal`` both
    axes share a range and the line of equality is drawn."""
    left, right, top, bottom = 78, 14, 12, 62 if categories else 48
    marks = [m for s in series for m in s.marks]
    if not marks:
        return "<p class='faint'>Nothing to draw.</p>"
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

    out = [opening(width, height, f"{y_label} by {x_label}")]
    for y in y_ticks:
        out.append(frame_line(left, py(y), width - right, py(y), GRID))
        out.append(text(left - 8, py(y) + 4, number(y, y_ticks), "end", FAINT))
    for i, x in enumerate(x_ticks):
        name = categories[i] if categories else number(x, x_ticks)
        if not categories:
            out.append(frame_line(px(x), top, px(x), height - bottom, GRID))
        turned = f" transform='rotate(-28 {px(x):.1f} {height - bottom + 16})'" if len(categories) > 6 else ""
        out.append(text(px(x), height - bottom + 18, name, "end" if turned else "middle", FAINT, turned))
    if diagonal:
        low, high = max(x0, y0), min(x1, y1)
        out.append(frame_line(px(low), py(low), px(high), py(high), "#b4bac4", "4 4"))
    out.append(text((left + width - right) / 2, height - 4, x_label, "middle", INK))
    out.append(
        text(
            13,
            (top + height - bottom) / 2,
            y_label,
            "middle",
            INK,
            f" transform='rotate(-90 13 {(top + height - bottom) / 2})'",
        )
    )
    for s in series:
        ends = [(m.x, m.low, m.high) for m in s.marks if s.band and m.low is not None and m.high is not None]
        if ends:  # behind all lines
            outline = [(x, low) for x, low, _ in ends] + [(x, high) for x, _, high in reversed(ends)]
            area = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in outline)
            out.append(f"<polygon points='{area}' fill='{s.color}' fill-opacity='.15'/>")
    shift = 7 if categories else 0
    for place, s in enumerate(series):
        dx = (place - (len(series) - 1) / 2) * shift
        points = " ".join(f"{px(m.x) + dx:.1f},{py(m.y):.1f}" for m in s.marks)
        dash = " stroke-dasharray='5 4'" if s.dashed else ""
        out.append(
            f"<polyline points='{points}' fill='none' stroke='{s.color}' stroke-width='2' stroke-opacity='.8'{dash}/>"
        )
        for m in s.marks:
            out.append(f"<g><title>{escape(f'{s.name}: {m.tip}')}</title>")
            if m.low is not None and m.high is not None and not s.band:
                out.append(frame_line(px(m.x) + dx, py(m.low), px(m.x) + dx, py(m.high), s.color))
            radius = "1.8" if s.band else "3.5"
            out.append(f"<circle cx='{px(m.x) + dx:.1f}' cy='{py(m.y):.1f}' r='{radius}' fill='{s.color}'/></g>")
    return "".join(out) + "</svg>"


def dot_chart(
    rows: Sequence[tuple[str, str]],
    series: Sequence[Series],
    *,
    x_label: str,
    zero: bool = False,
    width: int = 1080,
    row_height: int = 58,
) -> str:
    """One row per (name, remark), one dot with its interval per series; mark.y is the row, mark.x the value."""
    left, right, top, bottom = 210, 24, 6, 40
    marks = [m for s in series for m in s.marks]
    if not marks:
        return "<p class='faint'>Nothing to draw.</p>"
    values = [v for m in marks for v in (m.x, m.low, m.high) if v is not None] + ([0.0] if zero else [])
    ticks = nice_ticks(min(values), max(values), 7)
    height = top + bottom + row_height * len(rows)

    def px(x: float) -> float:
        return left + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (width - left - right)

    out = [opening(width, height, x_label)]
    for x in ticks:
        out.append(frame_line(px(x), top, px(x), height - bottom, "#9aa1ac" if zero and x == 0 else GRID))
        out.append(text(px(x), height - bottom + 17, number(x, ticks), "middle", FAINT))
    for i, (name, remark) in enumerate(rows):
        y = top + row_height * (i + 0.5)
        if i:
            out.append(frame_line(0, y - row_height / 2, width - right, y - row_height / 2, GRID))
        out.append(text(left - 16, y - 1, name, "end", INK, " font-weight='600'"))
        out.append(text(left - 16, y + 14, remark, "end", FAINT))
    for place, s in enumerate(series):
        dy = (place - (len(series) - 1) / 2) * 14
        for m in s.marks:
            y = top + row_height * (m.y + 0.5) + dy
            out.append(f"<g><title>{escape(f'{s.name}: {m.tip}')}</title>")
            if m.low is not None and m.high is not None:
                out.append(
                    f"<line x1='{px(m.low):.1f}' y1='{y:.1f}' x2='{px(m.high):.1f}' y2='{y:.1f}' stroke='{s.color}' stroke-width='3' stroke-opacity='.45' stroke-linecap='round'/>"
                )
            out.append(f"<circle cx='{px(m.x):.1f}' cy='{y:.1f}' r='4.5' fill='{s.color}'/></g>")
    out.append(text((left + width - right) / 2, height - 4, x_label, "middle", INK))
    return "".join(out) + "</svg>"


def legend(series: Sequence[Series]) -> str:
    """Coloured names."""
    names = "".join(f"<span><i style='background:{s.color}'></i>{escape(s.name)}</span>" for s in series)
    return f"<div class='legend'>{names}</div>"


def legend_svg(names: Sequence[tuple[str, str]], x: float, y: float) -> str:
    """Coloured names in a row, for a drawing that stands alone."""
    out = []
    for name, color in names:
        out.append(
            f"<circle cx='{x:.1f}' cy='{y - 4:.1f}' r='4' fill='{color}'/>" + text(x + 9, y, name, "start", color)
        )
        x += 30 + 6.4 * len(name)
    return "".join(out)


def opening(width: int, height: int, title: str) -> str:
    """Start of a drawing."""
    return f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{escape(title)}' style='{FONT}' xmlns='http://www.w3.org/2000/svg'>"


def frame_line(x1: float, y1: float, x2: float, y2: float, color: str, dash: str = "") -> str:
    """A straight line."""
    extra = f" stroke-dasharray='{dash}'" if dash else ""
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{color}'{extra}/>"


def text(x: float, y: float, words: str, anchor: str, color: str, extra: str = "") -> str:
    """Words at a place, anchored at their start, middle or end."""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{color}'{extra}>{escape(words)}</text>"


def number(value: float, ticks: Sequence[float]) -> str:
    """A value with the decimals that its ticks need."""
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(round(step, decimals) - step) > 1e-9 * max(step, 1e-12):
        decimals += 1  # steps of 2.5
    return f"{value:,.{decimals}f}".replace("-0" + "." + "0" * decimals if decimals else "-0", "0")
