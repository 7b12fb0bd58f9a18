"""An evaluation as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from thinktwice.console.output import Column, Record, print_table
from thinktwice.evaluate.verdict import difference
from thinktwice.stats.metrics import UNDEFINED

ROWS = (  # metric, title, decimals, which way is better
    ("auc", "AUC", 4, 1),
    ("logloss", "logloss", 4, -1),
    ("gauc", "GAUC", 4, 1),
    ("ece", "ECE", 4, -1),
    ("calibration_ratio", "expected / real clicks", 3, 0),
    ("truth_distance", "distance to the truth", 4, -1),
)


def print_metrics(console: Console, content: dict[str, Any]) -> None:
    """One column per model; changes against the first column, coloured where their 95 % interval excludes 0."""
    columns = content["columns"]
    first = columns[0]["key"]
    heads = [Column("", right=False)]
    for c in columns:
        ships = " ✓" if c["key"] == content["shipped"] and "trunk" in content else ""
        heads.append(Column(c["label"] + ships))
    records = []
    for metric, title, decimals, better in ROWS:
        if columns[0]["metrics"].get(metric) is None and metric != "auc":
            continue
        cells = [_cell(content, c, first, metric, decimals, better) for c in columns]
        records.append(Record((title, *cells)))
    for found in (*content["slices"], *content["scenarios"]):
        areas = [_slice_cell(found["columns"][c["key"]]) for c in columns]
        records.append(Record((f"{found['name']} ({found['share']:.0%}), AUC", *areas)))
    records.append(Record(("passes per row", *(f"{c['cost']['passes']:.2f}" for c in columns))))
    print_table(console, heads, records, title=f"{content['rows']:,} test rows")


def print_extra_work(console: Console, evaluation: dict[str, Any]) -> None:
    """One row per way to work more on a row, against one plain pass of the same trunk; coloured where the 95 % interval
    excludes 0. ``evaluation`` must have ``extra_work``."""
    found = evaluation["extra_work"]
    heads = [
        Column("", right=False),
        *(Column(name) for name in ("passes", "logloss", "p (Holm)", "AUC")),
        Column("on validation", right=False, wraps=True),
    ]
    off = found["off"]
    records = [Record(("one plain pass", "1.00", _plain(off["logloss"], 5), "", _plain(off["auc"], 4), ""))]
    for c in found["candidates"]:
        reasons = c["validation"]["reasons"]
        cells = (
            c["name"],
            f"{c['passes']:.2f}",
            _coloured(c["change"], 5, -1),
            f"{c['change']['p_holm']:.3f}",
            _coloured(c["auc_change"], 4, 1),
            "ships" if c["ships"] else reasons[0] if reasons else "a gain, but another fits better",
        )
        records.append(Record(cells, "bold" if c["ships"] else ""))
    title = f"Does extra work pay? As measured when the model was made, on {found['rows']:,} test rows"
    print_table(console, heads, records, title=title)


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
