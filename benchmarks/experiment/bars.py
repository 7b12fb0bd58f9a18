"""The required figures, and whether they are met."""

from __future__ import annotations

from typing import Any


def of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """All bars."""
    out = []
    false = result["false_positives"]
    for scenario, rates in false["scenarios"].items():
        for name, rate in rates.items():
            if name.startswith("rows"):
                out.append(
                    _bar(f"{scenario}: {name}: false positives (the test that fails)", rate, "> 0.055", rate > 0.055)
                )
            else:
                out.append(_bar(f"{scenario}: {name}: false positives", rate, "<= 0.055", rate <= 0.055))
    out.append(
        _bar(
            "ramp that grows the treatment: false positives (the layout that fails)",
            false["growing_treatment"],
            "> 0.5",
            false["growing_treatment"] > 0.5,
        )
    )
    for row in result["power"]["rows"]:
        if row["method"] == "group_sequential":
            name = f"group sequential: share of the fixed test's power of {row['fixed_power']:.0%} at its horizon"
            out.append(_bar(name, row["ratio"], ">= 0.95", row["ratio"] >= 0.95))
    for name, share in result["coverage"].items():
        if "at least nominal" in name:
            out.append(_bar(f"coverage: {name}", share, ">= 0.94", share >= 0.94))
        else:
            out.append(_bar(f"coverage: {name}", share, "0.94 to 0.96", 0.94 <= share <= 0.96))
    for kind in ("ctr", "mean"):
        measured, theory = result["cuped"][f"{kind}: measured variance ratio"], result["cuped"][f"{kind}: 1 - rho^2"]
        out.append(
            _bar(
                f"CUPED, {kind}: variance over that of theory",
                measured / theory,
                "0.95 to 1.05",
                abs(measured / theory - 1) <= 0.05,
            )
        )
    ratio = result["sample_ratio"]
    out.append(
        _bar(
            "sample ratio 50.2 / 49.8 seen at 1 M users: p",
            ratio["observed_50.2_at_a_million_p"],
            "caught",
            ratio["observed_50.2_at_a_million_caught"],
        )
    )
    for units, alarms in ratio["right_split_alarms_over_28_looks"].items():
        out.append(
            _bar(
                f"sample ratio: alarms of a right split over 28 looks, {int(units):,} users",
                alarms,
                "< 0.005",
                alarms < 0.005,
            )
        )
    assigned = result["assignment"]
    moved = assigned["enrolled_units_that_moved"]
    out.append(_bar("a ramp moves enrolled units", moved, "= 0", moved == 0))
    for name in ("uniform_p", "two_salts_independent_p", "daily_treatment_share_drift_p"):
        out.append(_bar(f"assignment: {name.replace('_', ' ')}", assigned[name], "> 0.001", assigned[name] > 0.001))
    worst = assigned["worst_share_in_standard_errors"]
    out.append(_bar("assignment: worst share of an arm, standard errors from its target", worst, "< 4", worst < 4))
    scale = result["scale"]
    size = f"{scale['exposures'] / 1e6:.0f} M exposures"
    if scale["load_average"] > result["machine"]["cores"]:  # other processes used the cores: wall time is meaningless
        name = f"{size}: CPU seconds of the analysis (load average {scale['load_average']:.0f}, wall time {scale['seconds']:.0f} s)"
        out.append(_bar(name, scale["cpu_seconds"], "<= 60", scale["cpu_seconds"] <= 60))
    else:
        out.append(_bar(f"{size}: seconds of the analysis", scale["seconds"], "<= 60", scale["seconds"] <= 60))
    out.append(_bar(f"{size}: peak memory, GiB", scale["peak_gib"], "<= 4", scale["peak_gib"] <= 4))
    return out


def _bar(name: str, value: float, bound: str, holds: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "bound": bound, "holds": bool(holds)}
