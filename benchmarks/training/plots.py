"""The plots of the page, drawn from the result only."""

from __future__ import annotations

from typing import Any

from benchmarks.training.plan import SHARES
from thinktwice.pages.charts import Mark, Series, dot_chart, line_chart
from thinktwice.pages.drawing import Drawing, picture

COLORS = {"thinktwice": "#b02a5b", "FuxiCTR": "#3b6fd4", "DeepCTR-Torch": "#2f7d4f", "torch-rechub": "#c2571a"}
MODES = {"dgenctr": "#3b6fd4", "dro": "#b02a5b", "kendall": "#c2571a", "uniform_norm": "#2f7d4f"}


def all_of(result: dict[str, Any]) -> dict[str, str]:
    """Name -> SVG of every plot for which something is done."""
    out = {}
    quality = [(name, table) for name, table in result["quality"].items() if len(table["models"]) > 1]
    if quality:
        out["quality"] = picture([_quality(*found) for found in quality], list(COLORS.items()))
    rows = [row for row in result["pretraining"]["rows"] if mode_of(row) is not None]
    if rows:
        out["pretraining"] = picture([_pretraining(rows)], list(MODES.items()))
    return out


def mode_of(row: dict[str, Any]) -> str | None:
    """The mode of a row without an ablation, as the plot and the page name it."""
    settings = dict(row["settings"])
    name = settings.pop("balancing", row["mode"])
    return name if not settings else None


def _quality(name: str, table: dict[str, Any]) -> Drawing:
    """AUC of every model, one row each, by side."""
    models = sorted({row["model"] for row in table["models"]})
    series = []
    for side, color in COLORS.items():
        marks = [
            Mark(row["auc"], models.index(row["model"]), tip=f"{row['auc']:.4f}")
            for row in table["models"]
            if row["side"] == side
        ]
        if marks:
            series.append(Series(side, color, marks))
    return dot_chart([(model, "") for model in models], series, x_label=f"{name}: AUC of the test rows", width=760)


def _pretraining(rows: list[dict[str, Any]]) -> Drawing:
    series = []
    for mode, color in MODES.items():
        marks = []
        for position, share in enumerate(SHARES):
            for row in rows:
                if mode_of(row) == mode and row["share"] == share:
                    auc = row["auc"]
                    low, high = (None if auc[k] is None else auc[k] * 1e4 for k in ("low", "high"))
                    marks.append(Mark(position, auc["value"] * 1e4, low, high, f"{auc['value']:+.4f}"))
        if marks:
            series.append(Series(mode, color, marks))
    return line_chart(
        series,
        x_label="share of the labels that are known",
        y_label="AUC over no pre-training, 1e-4",
        categories=[f"{share:.0%}" for share in SHARES],
        width=760,
        height=340,
    )
