"""The result of a training run as a table: every model on the same test rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console

from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.stats.metrics import UNDEFINED

NOT_DEFINED = "–"  # in a table, with a line below it that says why


def number(value: float | None, form: str = ".4f") -> str:
    """The number, or a dash where it is not defined."""
    return NOT_DEFINED if value is None else format(value, form)


def shown(path: Path) -> str:
    """The path as short as a reader in this folder can use it."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def print_results(console: Console, evaluation: dict[str, Any]) -> None:
    """The content of an ``evaluation.json``: a table with a row per model, cold-start slices and cost beside the metrics, and
    what it means in sentences."""
    cold = [s for s in evaluation["slices"] if s["name"].startswith("cold")]
    columns = [Column("model", right=False), Column("AUC"), Column("logloss")]
    columns += [Column(f"AUC {part['name']}\n({part['share']:.0%} of rows)") for part in cold]
    columns.append(Column("cost"))
    records = []
    for column in evaluation["columns"]:
        ships = column["key"] == evaluation["shipped"]
        metrics, cost = column["metrics"], column["cost"]
        cells = (
            f"{'→' if ships else ' '} {column['label']}",
            number(metrics["auc"]),
            number(metrics["logloss"]),
            *(number(part["columns"][column["key"]]["auc"].get("value")) for part in cold),
            f"× {cost['passes']:.2f}",
        )
        records.append(Record(cells, "bold" if ships else ""))
    say(console, f"\n{evaluation['rows']:,} test rows (→ ships; cost is forward passes per row)\n")
    print_table(console, columns, records)
    if any(NOT_DEFINED in record.cells for record in records):
        say(console, f"{NOT_DEFINED} {UNDEFINED}", indent=2)
    console.print()
    for line in evaluation["verdict"]:
        say(console, line)
