"""The page of the results, with plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thinktwice.files import atomic_file
from thinktwice.pages.charts import Mark, Series, dot_chart, line_chart
from thinktwice.pages.drawing import picture

COLORS = {"fixed": "#30343b", "group_sequential": "#2f7d4f", "sequence": "#3b6fd4"}
NAMES = {"fixed": "fixed horizon", "group_sequential": "group sequential", "sequence": "always-valid sequence"}


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write ``name``.md and its plots."""
    for plot, svg in (("power", _power(result)), ("false-positives", _false(result))):
        with atomic_file(folder / f"{name}-{plot}.svg") as temporary:
            temporary.write_text(svg, encoding="utf-8")
    lines = [
        "# Online experiments: the statistics",
        "",
        "Repeat it with `make bench-experiment`.",
        "",
        "| figure | value | bound | holds |",
        "| --- | --- | --- | --- |",
        *(
            f"| {b['name']} | {b['value']:.4g} | {b['bound']} | {'yes' if b['holds'] else '**no**'} |"
            for b in result["bars"]
        ),
        "",
        "## False positives of A/A experiments, a look a day",
        "",
        f"![false positives]({name}-false-positives.svg)",
        "",
        _false_text(result),
        "",
        "## Power",
        "",
        f"![power]({name}-power.svg)",
        "",
        _power_text(result),
        "",
        "## The pre-period",
        "",
        *(f"* {key}: {value:.4f}" for key, value in result["cuped"].items()),
        "",
        "## Sample ratio",
        "",
        _ratio_text(result),
        "",
        "## Scale",
        "",
        _scale_text(result),
        "",
        "## How it was measured",
        "",
        f"{result['machine']['system']}, {result['machine']['cores']} cores; "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        + ".",
    ]
    with atomic_file(folder / f"{name}.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _false(result: dict[str, Any]) -> str:
    scenarios = result["false_positives"]["scenarios"]
    names = [n for n in next(iter(scenarios.values())) if not n.startswith("rows")]
    series = [
        Series(scenario, color, [Mark(100 * rates[n], i, tip=f"{n}: {rates[n]:.2%}") for i, n in enumerate(names)])
        for (scenario, rates), color in zip(scenarios.items(), ("#3b6fd4", "#c2571a"), strict=True)
    ]
    rows = [(method, metric) for metric, _, method in (name.rpartition(": ") for name in names)]
    chart = dot_chart(rows, series, x_label="false positives, %", zero=True, width=760, row_height=44)
    return picture([chart], [(s.name, s.color) for s in series])


def _power(result: dict[str, Any]) -> str:
    rows = result["power"]["rows"]
    series = [
        Series(
            NAMES[m], COLORS[m],
            [Mark(100 * r["fixed_power"], 100 * r["power"], tip=f"{r['power']:.1%}") for r in rows if r["method"] == m],
        )
        for m in NAMES
    ]  # fmt: skip
    chart = line_chart(series, x_label="power of one look at the horizon, %", y_label="power, %")
    return picture([chart], [(s.name, s.color) for s in series])


def _false_text(result: dict[str, Any]) -> str:
    figures = result["false_positives"]
    rows = ", ".join(
        f"{rates['rows taken for independent']:.0%} ({scenario})" for scenario, rates in figures["scenarios"].items()
    )
    return (
        f"{figures['runs']:,} experiments of {figures['users_per_arm']:,} users an arm and {figures['looks']} daily looks. Activity is log-normal (the top "
        f"1 % of the users make about 13 % of the impressions), every user has a click rate of their own. A z-test that takes rows for "
        f"independent is wrong in {rows}. Under a ramp with a trend a layout that grows the treatment and calls all the rest control is "
        f"wrong in {figures['growing_treatment']:.0%}; arms that are equal at every step are not."
    )


def _power_text(result: dict[str, Any]) -> str:
    figures = result["power"]
    lines = ["| method | power of the fixed test | power | simulated | ratio |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {NAMES[r['method']]} | {r['fixed_power']:.0%} | {r['power']:.1%} | {r['simulated']:.1%} | {r['ratio']:.3f} |"
        for r in figures["rows"]
    ]
    factors = ", ".join(f"{NAMES[m]} {f:.2f}" for m, f in figures["horizon_factor_at_80_percent"].items())
    return "\n".join([*lines, "", f"Horizon needed for a power of 80 %, as a multiple of the fixed one: {factors}."])


def _ratio_text(result: dict[str, Any]) -> str:
    figures = result["sample_ratio"]
    return (
        f"Level {figures['alpha']}: P(any alarm, ever) of a right split is below it. A split that *is* 50.2 / 49.8 is found by a million users in "
        f"{figures['true_50.2_caught_by_a_million']:.0%} of the experiments with daily looks, and by four millions in "
        f"{figures['true_50.2_caught_by_four_millions']:.0%}; one that is *seen* as 502,000 / 498,000 is always found."
    )


def _scale_text(result: dict[str, Any]) -> str:
    figures = result["scale"]
    return (
        f"{figures['exposures']:,} exposures of {figures['users']:,} users: sums per unit, moments, intervals, guardrails and the decision in "
        f"{figures['seconds']:.1f} s ({figures['cpu_seconds']:.1f} s of CPU time), {figures['peak_gib']:.2f} GiB at the peak, at a load average of "
        f"{figures['load_average']:.1f} on {result['machine']['cores']} cores."
    )
