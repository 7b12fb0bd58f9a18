"""An evaluation as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from thinktwice.evaluate.metrics import UNDEFINED
from thinktwice.evaluate.verdict import difference

ROWS = (  # metric, title, decimals, which way is better
    ("auc", "AUC", 4, 1),
    ("logloss", "logloss", 4, -1),
    ("gauc", "GAUC", 4, 1),
    ("ece", "ECE", 4, -1),
    ("calibration_ratio", "expected / real clicks", 3, 0),
    ("truth_distance", "distance to the truth", 4, -1),
)


def metrics_table(content: dict[str, Any]) -> Table:
    """One column per model; changes against the first column, coloured where their 95 % interval excludes 0."""
    columns = content["columns"]
    first = columns[0]["key"]
    table = Table(title=f"{content['rows']:,} test rows", title_justify="left", header_style="bold")
    table.add_column("")
    for c in columns:
        ships = " ✓" if c["key"] == content["shipped"] and "trunk" in content else ""
        table.add_column(c["label"] + ships, justify="right")
    for metric, title, decimals, better in ROWS:
        if columns[0]["metrics"].get(metric) is None and metric != "auc":
            continue
        cells = [_cell(content, c, first, metric, decimals, better) for c in columns]
        table.add_row(title, *cells)
    for found in (*content["slices"], *content["scenarios"]):
        areas = [_slice_cell(found["columns"][c["key"]]) for c in columns]
        table.add_row(f"{found['name']} ({found['share']:.0%}), AUC", *areas)
    table.add_row("passes per row", *(f"{c['cost']['passes']:.2f}" for c in columns))
    return table


def extra_work_table(evaluation: dict[str, Any]) -> Table:
    """One row per way to work more on a row, against one plain pass of the same trunk; coloured where the 95 % interval
    excludes 0. ``evaluation`` must have ``extra_work``."""
    found = evaluation["extra_work"]
    title = f"Does extra work pay? As measured when the model was made, on {found['rows']:,} test rows"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("", "passes", "logloss", "p (Holm)", "AUC"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_column("on validation")
    table.add_row("one plain pass", "1.00", _plain(found["off"]["logloss"], 5), "", _plain(found["off"]["auc"], 4), "")
    for c in found["candidates"]:
        reasons = c["validation"]["reasons"]
        table.add_row(
            c["name"],
            f"{c['passes']:.2f}",
            _coloured(c["change"], 5, -1),
            f"{c['change']['p_holm']:.3f}",
            _coloured(c["auc_change"], 4, 1),
            "ships" if c["ships"] else reasons[0] if reasons else "a gain, but another fits better",
            style="bold" if c["ships"] else "",
        )
    return table


def _cell(content: dict[str, Any], column: dict[str, Any], first: str, metric: str, decimals: int, better: int) -> Text:
    value = column["metrics"].get(metric)
    text = Text(UNDEFINED if value is None else _plain(value, decimals))
    change = difference(content, column["key"], first, metric)
    if change is not None:
        text.append(" ").append_text(_coloured(change, decimals, better))
    return text


def _coloured(change: dict[str, Any], decimals: int, better: int) -> Text:
    if change["value"] is None:
        return Text("–")
    style = "dim"
    if change["significant"] and better:
        style = "green" if change["value"] * better > 0 else "red"
    return Text(f"{change['value']:+.{decimals}f}", style=style)


def _plain(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _slice_cell(found: dict[str, Any]) -> str:
    value = found["auc"]["value"]
    return UNDEFINED if value is None else f"{value:.4f}"
