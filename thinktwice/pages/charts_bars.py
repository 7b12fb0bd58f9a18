"""Bar charts: thin bars in a table cell, and bars over time with a line of rates."""

from __future__ import annotations

from collections.abc import Sequence

from thinktwice.pages.drawing import FAINT, Drawing, Shape, group, polyline, shape, text

PALE, SOFT, STRONG = "#c3cad6", "#8fb0e8", "#2f6fdb"
LIVE = "#e0662f"
MAX_BINS = 40


def bars(labels: Sequence[str], series: Sequence[tuple[str, str, Sequence[float]]]) -> Drawing:
    """Thin bars per bin, one of each (name, color, shares). Bins that are empty in all series are left out."""
    shown_bins = [i for i in range(len(labels)) if any(shares[i] > 0 for _, _, shares in series)][:MAX_BINS]
    most = max((shares[i] for i in shown_bins for _, _, shares in series), default=1.0)
    step = max(5.0, min(18.0, 300 / max(len(shown_bins), 1)))
    width = step * 0.86 / max(len(series), 1)
    out: list[Shape] = []
    for slot, i in enumerate(shown_bins):
        drawn = []
        for number, (_, color, shares) in enumerate(series):
            tall = 36 * shares[i] / most
            x = slot * step + number * width
            drawn.append(shape("rect", x=x, y=38 - tall, width=width, height=tall, fill=color))
        shown = ", ".join(f"{name} {shares[i]:.2%}" for name, _, shares in series)
        out.append(group(f"{labels[i]}: {shown}", *drawn))
    return Drawing(max(step * len(shown_bins), step), 39, "shares", out, fixed=True)


def timeline_chart(slices: Sequence[tuple[str, int, float]]) -> Drawing:
    """Rows as bars and their click rate as a line, for every (name, rows, click rate)."""
    width, height, left, base = 1060, 190, 8, 150
    step = (width - 2 * left) / len(slices)
    most = max(rows for _, rows, _ in slices)
    top = max(rate for *_, rate in slices) or 1.0
    every = max(1, len(slices) // 8)
    columns, labels, points = [], [], []
    for i, (name, rows, rate) in enumerate(slices):
        x, tall = left + i * step, max(1.0, rows / most * 120)
        bar = shape("rect", x=x, y=base - tall, width=step * 0.78, height=tall, rx=2.0, fill=SOFT)
        columns.append(group(f"{name}: {rows:,} rows, click rate {rate:.2%}", bar))
        points.append((x + step * 0.39, base - rate / top * 110))
        if i % every == 0 and x < width - 70:
            labels.append(text(x, base + 18, name, "start", FAINT))
    dots = [shape("circle", cx=x, cy=y, r=2.6, fill=LIVE) for x, y in points]
    scale = text(left, 14, f"highest bar {most:,} rows · highest point {top:.2%}", "start", FAINT)
    shapes = [*columns, polyline(points, LIVE), *dots, *labels, scale]
    return Drawing(width, height, "rows and click rate over time", shapes)
