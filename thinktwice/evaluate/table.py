"""An evaluation as tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.evaluate.evaluation import (
    Evaluation,
    MeasuredColumn,
    MetricName,
    SliceColumn,
    TrainingEvaluation,
)
from thinktwice.stats.metrics import UNDEFINED
from thinktwice.versioned import MeasuredInterval

NOT_DEFINED = "–"  # in a table, explained in a line below it
ROWS: tuple[tuple[MetricName, str, int, int], ...] = (  # metric, title, decimals, direction of improvement
    ("auc", "AUC", 4, 1),
    ("logloss", "logloss", 4, -1),
    ("gauc", "GAUC", 4, 1),
    ("ece", "ECE", 4, -1),
    ("calibration_ratio", "expected / real clicks", 3, 0),
    ("truth_distance", "distance to the truth", 4, -1),
)


def print_results(console: Console, evaluation: Evaluation) -> None:
    """One row per model with metrics, cold-start slices and cost, and a summary in sentences."""
    cold = [s for s in evaluation.slices if s.name.startswith("cold")]
    heads = [Column("model", right=False), Column("AUC"), Column("logloss")]
    heads += [Column(f"AUC {part.name}\n({part.share:.0%} of rows)") for part in cold]
    heads.append(Column("cost"))
    records = []
    for column in evaluation.columns:
        ships = column.key == evaluation.shipped
        cells = (
            f"{'→' if ships else ' '} {column.label}",
            _plain(column.metrics.auc, 4),
            _plain(column.metrics.logloss, 4),
            *(_plain(part.columns[column.key].auc.value, 4) for part in cold),
            f"× {column.cost.passes:.2f}",
        )
        records.append(Record(cells, "bold" if ships else ""))
    say(console, f"\n{evaluation.rows:,} test rows (→ ships; cost is forward passes per row)\n")
    print_table(console, heads, records)
    if any(NOT_DEFINED in record.cells for record in records):
        say(console, f"{NOT_DEFINED} {UNDEFINED}", indent=2)
    console.print()
    for line in evaluation.verdict:
        say(console, line)


def print_metrics(console: Console, content: Evaluation) -> None:
    """One column per model; changes against the first column, coloured where their 95 % interval excludes 0."""
    columns = content.columns
    first = columns[0].key
    heads = [Column("", right=False)]
    for c in columns:
        ships = " ✓" if c.key == content.shipped and isinstance(content, TrainingEvaluation) else ""
        heads.append(Column(c.label + ships))
    records = []
    for metric, title, decimals, better in ROWS:
        if columns[0].metrics.of(metric) is None and metric != "auc":
            continue
        cells = [_cell(content, c, first, metric, decimals, better) for c in columns]
        records.append(Record((title, *cells)))
    for part in (*content.slices, *content.scenarios):
        areas = [_slice_cell(part.columns[c.key]) for c in columns]
        records.append(Record((f"{part.name} ({part.share:.0%}), AUC", *areas)))
    records.append(Record(("passes per row", *(f"{c.cost.passes:.2f}" for c in columns))))
    print_table(console, heads, records, title=f"{content.rows:,} test rows")


def print_extra_work(console: Console, evaluation: TrainingEvaluation) -> None:
    """One row per kind of extra work, against one plain pass of the same trunk; coloured where the 95 % interval excludes 0."""
    extra_work = evaluation.extra_work
    heads = [
        Column("", right=False),
        *(Column(name) for name in ("passes", "logloss", "p (Holm)", "AUC")),
        Column("on validation", right=False, wraps=True),
    ]
    off = extra_work.off
    records = [Record(("one plain pass", "1.00", _plain(off.logloss, 5), "", _plain(off.auc, 4), ""))]
    for c in extra_work.candidates:
        reasons = c.validation.reasons
        cells = (
            c.name,
            f"{c.passes:.2f}",
            _coloured(c.change, 5, -1),
            f"{c.change.p_holm:.3f}",
            _coloured(c.auc_change, 4, 1),
            "ships" if c.ships else reasons[0] if reasons else "a gain, but another fits better",
        )
        records.append(Record(cells, "bold" if c.ships else ""))
    title = f"Does extra work pay? As measured when the model was made, on {extra_work.rows:,} test rows"
    print_table(console, heads, records, title=title)


def _cell(
    content: Evaluation, column: MeasuredColumn, first: str, metric: MetricName, decimals: int, better: int
) -> Text:
    value = column.metrics.of(metric)
    text = Text(UNDEFINED if value is None else _plain(value, decimals))
    change = content.difference(column.key, first, metric)
    if change is not None:
        text.append(" ").append_text(_coloured(change, decimals, better))
    return text


def _coloured(change: MeasuredInterval, decimals: int, better: int) -> Text:
    if change.value is None:
        return Text(NOT_DEFINED)
    style = "dim"
    if change.significant and better:
        style = "green" if change.value * better > 0 else "red"
    return Text(f"{change.value:+.{decimals}f}", style=style)


def _plain(value: float | None, decimals: int) -> str:
    return NOT_DEFINED if value is None else f"{value:.{decimals}f}"


def _slice_cell(column: SliceColumn) -> str:
    value = column.auc.value
    return UNDEFINED if value is None else f"{value:.4f}"
