"""The page of the results, with plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.load.report import COLORS
from thinktwice.pages.charts import Mark, Series, line_chart
from thinktwice.pages.drawing import picture

PERCENTILES = ("p50", "p90", "p99", "p99.9")


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write ``NAME.md`` and one ``NAME-SERVER.svg`` per server."""
    lines = ["# Serving", "", "| figure | value | bound | holds |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {b['name']} | {b['value']} | {b['bound']} | {'yes' if b['holds'] else '**no**'} |" for b in result["bars"]
    ]
    lines += ["", "## In the process: 100 candidates, ms", ""]
    modes = result["inside"]
    lines += ["| stage | " + " | ".join(f"{name} {q}" for name in modes for q in ("p50", "p99")) + " |"]
    lines += ["| --- |" + " --- |" * 2 * len(modes)]
    lines += [
        f"| {stage} | "
        + " | ".join(f"{found[stage][q]:.3f}" for found in modes.values() for q in ("p50", "p99"))
        + " |"
        for stage in modes["off"]
    ]
    lines += [
        "",
        "## Lookup of one user and 500 items, ms",
        "",
        "| reader | wall p50 | wall p99 | CPU p50 |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {kind} | {v['wall_p50']:.2f} | {v['wall_p99']:.2f} | {v['cpu_p50']:.2f} |"
        for kind, v in result["lookups"].items()
    ]
    scored = result["backends"]
    lines += ["", f"## The trunk alone: eager torch and the chosen backend, {scored['name']}", ""]
    lines += ["| rows | model(batch), µs | eager backend, µs | chosen, µs |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {rows} | {v['plain']:.0f} | {v['eager']:.0f} | {v['chosen']:.0f} |"
        for rows, v in scored["microseconds"].items()
    ]
    lines += [
        "",
        "The eager backend gives a row the same bits in any request, as the chosen one does; model(batch) does not.",
    ]
    lines += [f"Largest difference of a probability: {scored['largest_difference_of_a_probability']:.1e}."]
    hop, rates = result["hop"], result["throughput"]
    lines += ["", "## Through TorchServe", ""]
    lines += [
        f"One caller, 100 candidates: p50 {hop['ours']['p50']:.2f} ms, p99 {hop['ours']['p99']:.2f} ms; a handler that does"
    ]
    lines += [
        f"nothing takes {hop['nothing']['p50']:.2f} and {hop['nothing']['p99']:.2f} ms. Four callers: {rates['ours']:.0f} answers a"
    ]
    lines += [f"second, the obvious stack {rates['obvious']:.0f}."]
    for server, loads in result["loads"].items():
        lines += ["", f"## {server} under Poisson load (capacity {loads['capacity_per_second']:.0f} a second)", ""]
        lines += [f"![latency]({name}-{server}.svg)", "", "Dashed: off. Solid: gate and, above it, uttsi.", ""]
        lines += [
            "| load | mode | p50 | p90 | p99 | p99.9 | refused | late |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        series = []
        for percent in ("50", "80", "110"):
            for mode in ("off", "gate", "uttsi"):
                step = loads[percent][mode]
                found, sent = step["latency_ms"], max(step["sent"], 1)
                shares = [f"{100 * step['outcomes'][o] / sent:.1f} %" for o in ("refused", "late")]
                lines.append(
                    f"| {percent} % | {mode} | {' | '.join(f'{found[p]:.1f}' for p in PERCENTILES)} | {' | '.join(shares)} |"
                )
                marks = [Mark(x, found[p], tip=f"{found[p]:.1f} ms") for x, p in enumerate(PERCENTILES)]
                label = f"{percent} %, {mode}"
                color = COLORS[("50", "80", "110").index(percent)]
                series.append(Series(label, color, marks, dashed=mode == "off"))
        chart = line_chart(series, x_label="percentile", y_label="latency, ms", categories=PERCENTILES)
        names = [(f"{p} %", COLORS[i]) for i, p in enumerate(("50", "80", "110"))]
        (folder / f"{name}-{server}.svg").write_text(picture([chart], names), encoding="utf-8")
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
