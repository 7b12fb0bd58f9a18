"""The plots of the page, drawn from the result only."""

from __future__ import annotations

from typing import Any

from benchmarks.evidence.bars import row_of
from benchmarks.evidence.data import DELAYS
from benchmarks.evidence.measure import DEFAULT, METHODS, TWO
from thinktwice.pages.charts import Mark, Series, line_chart
from thinktwice.pages.drawing import Drawing, picture

COLORS = {
    METHODS["correction"]: "#b02a5b",
    METHODS["retrieval"]: "#2f7d4f",
    METHODS["trees"]: "#c2571a",
    METHODS["in trunk"]: "#8a6d1f",
    TWO: "#3b6fd4",
    DEFAULT: "#9aa1ac",
}
TRIGGERS = {"entropy": "#3b6fd4", "moved": "#c2571a", "random": "#9aa1ac", "oracle": "#2f7d4f"}


def all_of(result: dict[str, Any]) -> dict[str, str]:
    """Name -> SVG of every plot."""
    out = {}
    logs = {name: log for name, log in result["logs"].items() if log["methods"]}
    if logs:
        out["delays"] = picture([_delays(name, log) for name, log in logs.items()], list(COLORS.items()))
    second = [(name, delay, t) for name, log in logs.items() for delay, t in log["second_look"].items()]
    if second:
        out["second-look"] = picture([_second(*found) for found in second], list(TRIGGERS.items()))
    return out


def _delays(name: str, log: dict[str, Any]) -> Drawing:
    """AUC over the trunk by the delay of labels; a method without evidence is the same at all of them."""
    series = []
    for method, color in COLORS.items():
        marks = []
        for position, delay in enumerate(DELAYS):
            row = row_of(log, method, delay) or row_of(log, method, "")
            if row is not None:
                auc = row["auc"]
                low, high = (None if auc[k] is None else auc[k] * 1e4 for k in ("low", "high"))
                marks.append(Mark(position, auc["value"] * 1e4, low, high, f"{auc['value']:+.4f}"))
        if marks:
            series.append(Series(method, color, marks, dashed=method in (TWO, DEFAULT)))
    return line_chart(
        series,
        x_label=f"{name}: when labels are known",
        y_label="AUC over the trunk, 1e-4",
        categories=list(DELAYS),
        width=760,
        height=340,
    )


def _second(name: str, delay: str, table: dict[str, Any]) -> Drawing:
    series = []
    for trigger, color in TRIGGERS.items():
        marks = [Mark(0, 0)]
        for share in table["shares"]:
            if (share["unit"], share["trigger"]) == ("rows", trigger):
                gain = share["over_first_look"]["value"]
                marks.append(Mark(share["share"] * 100, gain * 1e4, tip=f"{share['share']:.0%}: {gain:+.5f}"))
        series.append(Series(trigger, color, marks, dashed=trigger in ("random", "oracle")))
    return line_chart(
        series,
        x_label=f"{name}, labels known {delay}: % of rows with a second look",
        y_label="AUC over the first look, 1e-4",
        width=760,
        height=320,
    )
