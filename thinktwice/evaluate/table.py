"""An evaluation as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

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
        if columns[0]["metrics"].get(metric) is None:
            continue
        cells = [_cell(content, c, first, metric, decimals, better) for c in columns]
        table.add_row(title, *cells)
    for found in (*content["slices"], *content["scenarios"]):
        areas = [_slice_cell(found["columns"][c["key"]]) for c in columns]
        table.add_row(f"{found['name']} ({found['share']:.0%}), AUC", *areas)
    table.add_row("passes per row", *(f"{c['cost']['passes']:.2f}" for c in columns))
    return table


def _cell(content: dict[str, Any], column: dict[str, Any], first: str, metric: str, decimals: int, better: int) -> Text:
    value = column["metrics"].get(metric)
    text = Text("–" if value is None else f"{value:.{decimals}f}")
    change = difference(content, column["key"], first, metric)
    if change is not None:
        style = "dim"
        if change["significant"] and better:
            style = "green" if change["value"] * better > 0 else "red"
        text.append(f" {change['value']:+.{decimals}f}", style=style)
    return text


def _slice_cell(found: dict[str, Any]) -> str:
    value = found["auc"]["value"]
    return "–" if value is None else f"{value:.4f}"
