"""The result of a training run as a table: every model on the same test rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from thinktwice.evaluate.metrics import UNDEFINED

NOT_DEFINED = "–"  # in a table, with a line below it that says why


def number(value: float | None, form: str = ".4f") -> str:
    """The number, or a dash where it is not defined."""
    return NOT_DEFINED if value is None else format(value, form)


def shown(path: Path) -> str:
    """The path as short as a reader in this folder can use it."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def result_table(evaluation: dict[str, Any]) -> Table:
    """Table of the content of an ``evaluation.json``: one row per model, cold-start slices and cost beside the metrics."""
    cold = [s for s in evaluation["slices"] if s["name"].startswith("cold")]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("model", no_wrap=True)
    for name in ("AUC", "logloss"):
        table.add_column(name, justify="right")
    for part in cold:
        table.add_column(f"AUC {part['name']}\n({part['share']:.0%} of rows)", justify="right")
    table.add_column("cost", justify="right")
    for column in evaluation["columns"]:
        ships = column["key"] == evaluation["shipped"]
        metrics, cost = column["metrics"], column["cost"]
        table.add_row(
            f"{'→' if ships else ' '} {column['label']}",
            number(metrics["auc"]),
            number(metrics["logloss"]),
            *(number(part["columns"][column["key"]]["auc"].get("value")) for part in cold),
            f"× {cost['passes']:.2f}",
            style="bold" if ships else "",
        )
    return table


def print_results(console: Console, evaluation: dict[str, Any]) -> None:
    """The table, and what it means in sentences."""
    title = (f"{evaluation['rows']:,} test rows", "bold")
    console.print(Text.assemble("\n", title, " (→ ships; cost is forward passes per row)\n"))
    table = result_table(evaluation)
    console.print(table)
    if any(NOT_DEFINED in cells for cells in (list(column.cells) for column in table.columns)):
        console.print(f"  {NOT_DEFINED} {UNDEFINED}")
    console.print()
    for line in evaluation["verdict"]:
        console.print(line)
