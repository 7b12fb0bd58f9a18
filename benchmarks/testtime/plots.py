"""The plots of the page, drawn from the result file only."""

from __future__ import annotations

from typing import Any

from thinktwice.pages.charts import Mark, Series, line_chart
from thinktwice.pages.charts_scatter import Point, scatter_chart
from thinktwice.pages.drawing import Drawing, picture

KINDS = {  # kinds of modes and their colours
    "one pass": "#2f7d4f",
    "feature paths": "#c2571a",
    "further trunks": "#3b6fd4",
    "lean": "#b02a5b",
}
FRONTIER = {
    "lean": "lean",
    "gate": "one pass",
    "gate without counts": "one pass",
    "mask_block": "one pass",
    "distilled from 3, soft 1": "one pass",
    "3 trunks, one table: the first alone": "one pass",
    "wider, 2 x FLOPs": "further trunks",
    "uttsi": "feature paths",
    "random masks": "feature paths",
    "matt": "feature paths",
    "sgctr": "feature paths",
    "members, 20% by entropy": "further trunks",
    "2 seeds": "further trunks",
    "3 seeds": "further trunks",
    "3 trunks, one table": "further trunks",
}
PANELS = (("sim_strong", "tuned"), ("sim_strong", "overtrained"), ("sim_shift", "tuned"), ("ml_time", "tuned"))
SIGNALS = {
    "entropy": "#3b6fd4",
    "dual": "#c2571a",
    "rarity": "#8a6d1f",
    "chance": "#9aa1ac",
    "oracle (cannot be built)": "#2f7d4f",
}


def all_of(result: dict[str, Any]) -> dict[str, str]:
    """Name -> SVG of every plot."""
    return {"frontier": picture(_frontiers(result), _kinds()), "uplift": picture(_uplifts(result), _signals())}


def _frontiers(result: dict[str, Any]) -> list[Drawing]:
    tables = {(t["data"], t["regime"]): t for t in result["tables"] if t["backbone"] == "deepfm"}
    chosen = [tables[key] for key in PANELS if key in tables] or list(tables.values())
    return [_frontier(table) for table in chosen]


def _frontier(table: dict[str, Any]) -> Drawing:
    points = [Point("plain", 1.0, 0.0, color="#30343b")]
    for m in table["methods"]:
        kind = FRONTIER.get(m["method"])
        change = m["logloss"]
        if kind is None or change["value"] is None:
            continue
        low, high = (None if change[k] is None else change[k] * 1e4 for k in ("low", "high"))
        # The wider trunk is one pass with twice the arithmetic.
        passes = 2.0 if m["method"].startswith("wider") else m["passes"]
        points.append(
            Point(m["method"], passes, change["value"] * 1e4, low, high, KINDS[kind], f"{change['value']:+.5f}")
        )
    return scatter_chart(
        points,
        x_label="forward passes per row",
        y_label="change of logloss, 1e-4 (less is better)",
        title=f"{table['data']}, {table['regime']} trunk",
        log_x=True,
    )


def _uplifts(result: dict[str, Any]) -> list[Drawing]:
    shown_panels = [u for u in result["uplift"] if u["backbone"] == "deepfm" and (u["data"], u["regime"]) in PANELS]
    return [_uplift(u) for u in (shown_panels or result["uplift"])]


def _uplift(uplift: dict[str, Any]) -> Drawing:
    series = [
        Series(
            name,
            SIGNALS[name],
            [
                Mark(s * 100, c * 1e4, tip=f"{s:.0%}: {c * 1e4:+.1f}")
                for s, c in zip(curve["shares"], curve["change"], strict=True)
            ],
            dashed=name.startswith(("oracle", "chance")),
        )
        for name, curve in uplift["curves"].items()
        if not name.startswith("oracle")
    ]
    return line_chart(
        series,
        x_label=f"{uplift['data']}, {uplift['regime']}: % of rows escalated",
        y_label="change of logloss, 1e-4",
        width=760,
        height=360,
    )


def _kinds() -> list[tuple[str, str]]:
    return list(KINDS.items())


def _signals() -> list[tuple[str, str]]:
    return [(name, color) for name, color in SIGNALS.items() if not name.startswith("oracle")]
