"""Report of a load run: a table, a plot, and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from serving.load.drive import Measured
from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.pages import templates
from thinktwice.pages.charts import Mark, Series, line_chart

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)
COLORS = ("#2f6fde", "#d9822b", "#2e9e5b", "#b0413e", "#7a5cc0", "#30343b")
BARS = " ▁▂▃▄▅▆▇█"
STRIP_ENDS = 26  # columns for the indent and the two ends of a strip


@dataclass(frozen=True)
class Step:
    """One run at one load."""

    name: str
    offered: float | None  # requests per second; None in the closed loop
    measured: Measured

    def percentile(self, q: float) -> float:
        """Percentile of the latency in milliseconds; NaN without responses."""
        latencies = self.measured.answered
        return float(np.percentile(latencies, q) * 1000) if len(latencies) else float("nan")

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "offered_per_second": self.offered,
            "seconds": self.measured.seconds,
            "sent": len(self.measured.outcomes),
            "answered_per_second": self.measured.throughput,
            "latency_ms": {label(q): self.percentile(q) for q in PERCENTILES},
            "outcomes": self.measured.counts(),
            "refused_without_retry_after": self.measured.refused_silently,
            "replayed_with_another_answer": self.measured.unequal,
            "first_wrong": self.measured.first_wrong,
        }


def label(q: float) -> str:
    """Name of a percentile: p50, p99.9, max."""
    return "max" if q == 100 else f"p{q:g}"


def print_steps(console: Console, steps: list[Step]) -> None:
    """Print one row per step (offered and answered rate, latency percentiles, other outcomes), then its latency histogram."""
    names = ("offered/s", "answered/s", *(label(q) for q in PERCENTILES), "refused", "late", "bad")
    columns = [Column("load", right=False), *(Column(name) for name in names)]
    records = []
    for step in steps:
        counts, sent = step.measured.counts(), max(len(step.measured.outcomes), 1)
        failed = sum(counts[name] for name in ("failed", "wrong", "lost", "not sent")) + step.measured.unequal
        cells = (
            step.name,
            "" if step.offered is None else f"{step.offered:.0f}",
            f"{step.measured.throughput:.0f}",
            *(f"{step.percentile(q):.1f}" for q in PERCENTILES),
            f"{100 * counts['refused'] / sent:.1f} %",
            f"{100 * counts['late'] / sent:.1f} %",
            str(failed),
        )
        records.append(Record(cells))
    print_table(console, columns, records, title="latency in ms, from the moment a request was due")
    for step in steps:
        say(console, f"{step.name}:")
        say(console, strip(step, max(8, min(60, console.width - STRIP_ENDS))), indent=2)


def strip(step: Step, width: int = 60) -> str:
    """Histogram of latencies on a logarithmic scale, one character per bucket."""
    latencies_ms = step.measured.answered * 1000
    if len(latencies_ms) == 0:
        return "no answers"
    low, high = max(float(latencies_ms.min()), 1e-3), max(float(latencies_ms.max()), 2e-3)
    bounds = np.geomspace(low * 0.999, high * 1.001, width + 1)
    counts, _ = np.histogram(latencies_ms, bounds)
    heights = np.ceil(counts / counts.max() * (len(BARS) - 1)).astype(int)
    return f"{low:8.2f} ms {''.join(BARS[t] for t in heights)} {high:.1f} ms"


def plot(steps: list[Step]) -> str:
    """HTML page with latency by percentile, one line per step."""
    series = [
        Series(
            step.name,
            COLORS[i % len(COLORS)],
            [
                Mark(x, step.percentile(q), tip=f"{step.name} {label(q)}: {step.percentile(q):.1f} ms")
                for x, q in enumerate(PERCENTILES)
            ],
        )
        for i, step in enumerate(steps)
        if len(step.measured.answered)
    ]
    chart = line_chart(series, x_label="percentile", y_label="latency, ms", categories=[label(q) for q in PERCENTILES])
    folder = Path(__file__).parent
    return str(templates.render(folder, "latency.html", title="Latency", subtitles=(), series=series, drawing=chart))


def trouble(steps: list[Step]) -> list[str]:
    """Problems that must not occur under any load, one sentence each."""
    out = []
    for step in steps:
        counts = step.measured.counts()
        for name, description in (
            ("failed", "answered with an error"),
            ("wrong", f"answered wrongly ({step.measured.first_wrong})"),
            ("lost", "never answered"),
            ("not sent", "not sent, because too many were in progress"),
        ):
            if counts[name]:  # type: ignore[index]
                out.append(f"{step.name}: {counts[name]} requests were {description}")  # type: ignore[index]
        if step.measured.unequal:
            out.append(f"{step.name}: {step.measured.unequal} requests got a different response when sent again")
        if step.measured.refused_silently:
            out.append(f"{step.name}: {step.measured.refused_silently} refusals had no Retry-After")
    return out
