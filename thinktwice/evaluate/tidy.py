"""``evaluation.csv``: the numbers of a report as one tidy table, a number per line. ``evaluation.json`` has the same and more."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from thinktwice.evaluate.evaluation import Evaluation, TrainingEvaluation
from thinktwice.evaluate.extra_work_record import TestedChange
from thinktwice.evaluate.findings.record import Findings, Importance, Pretraining
from thinktwice.files import atomic_dir
from thinktwice.release.bundle import EVALUATION_FILE
from thinktwice.versioned import MeasuredInterval

TABLE_FILE = "evaluation.csv"


class Number(NamedTuple):
    """One line of the table.

    ``section`` is the question, ``subject`` what was measured (a model, field or slice), ``against`` what a difference is relative to,
    ``at`` the epoch of a point of a curve. Empty where there is none, and where a number is not defined.
    """

    section: str
    subject: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    p_holm: float | None = None
    rows: int | None = None
    against: str = ""
    at: float | None = None


def to_csv(content: Evaluation) -> str:
    """The table with its head; numbers with all their digits, lines ending in a line feed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Number._fields)
    for number in numbers(content):
        writer.writerow("" if value is None else value for value in number)
    return out.getvalue()


def write_numbers(content: Evaluation, folder: Path | str) -> None:
    """Write ``evaluation.json`` and ``evaluation.csv`` into a new folder."""
    with atomic_dir(folder) as temporary:
        content.write(temporary / EVALUATION_FILE)
        (temporary / TABLE_FILE).write_text(to_csv(content), encoding="utf-8", newline="")


def numbers(content: Evaluation) -> Iterator[Number]:
    """All lines: models and their differences, then the findings of a training run in the order of the report."""
    for column in content.columns:
        for metric, value in column.metrics:
            yield Number("model", column.key, metric, value, rows=content.rows)
    for one in content.differences:
        yield Number("difference", one.column, one.metric, one.value, one.low, one.high, against=one.against)
    if isinstance(content, TrainingEvaluation):
        for trunk, curve in content.curves.items():
            for point in curve:
                for metric in ("train_logloss", "valid_logloss", "valid_auc"):
                    yield Number("curve", trunk, metric, getattr(point, metric), at=point.epoch)
        if content.findings is not None:
            yield from _findings(content.findings)


def _findings(found: Findings) -> Iterator[Number]:
    compared = found.comparison
    yield _interval("shipped", "shipped", "auc", compared.auc)
    yield Number("shipped", "shipped", "logloss", compared.logloss)
    for baseline in compared.baselines:
        yield _interval("baseline", baseline.name, "auc", baseline.auc)
        yield Number("baseline", baseline.name, "logloss", baseline.logloss)
        yield Number("baseline", baseline.name, "strength", baseline.strength, rows=baseline.rows)
        yield _interval("lead", "shipped", "auc", baseline.auc_change, against=baseline.name)
        yield _interval("lead", "shipped", "logloss", baseline.logloss_change, against=baseline.name)
    for learned in found.learning:
        yield Number("kept", learned.trunk, "epoch", learned.kept)
        for name, part in (("train", learned.train), ("valid", learned.valid), ("test", learned.test)):
            yield Number("kept", learned.trunk, f"{name}_auc", part.auc, rows=part.rows)
            yield Number("kept", learned.trunk, f"{name}_logloss", part.logloss, rows=part.rows)
    yield from _importance("importance of groups", found.importance.groups, found.importance.rows)
    yield from _importance("importance of fields", found.importance.fields, found.importance.rows)
    for part_of in found.weakness.slices:
        name, rows = part_of.name, part_of.rows
        yield _interval("slice", name, "auc", part_of.auc, rows=rows)
        if part_of.auc_gap is not None:
            yield _interval("slice", name, "auc", part_of.auc_gap, rows=rows, against="other rows")
        yield _interval("slice", name, "bias", part_of.bias, rows=rows)
        for metric in ("logloss", "click_rate", "predicted"):
            yield Number("slice", name, metric, getattr(part_of, metric), rows=rows)
    if found.pretraining is not None:
        yield from _pretraining(found.pretraining)


def _importance(section: str, found: Iterable[Importance], rows: int) -> Iterator[Number]:
    for one in found:
        yield _interval(section, one.name, "auc_lost", one.auc, rows=rows)
        yield _interval(section, one.name, "logloss_added", one.logloss, rows=rows)


def _pretraining(found: Pretraining) -> Iterator[Number]:
    for epoch, value in zip(found.epochs, found.label, strict=True):
        yield Number("pre-training", "label", "loss", value, at=epoch)
    for field in found.fields:
        for epoch, loss in zip(found.epochs, field.losses, strict=True):
            yield Number("pre-training", field.name, "loss", loss, at=epoch)
        for epoch, weight in zip(found.epochs, field.weights, strict=False):
            yield Number("pre-training", field.name, "weight", weight, at=epoch)
        if field.difficulty is not None:
            for metric, number in field.difficulty:
                yield Number("pre-training", field.name, f"difficulty_{metric}", number)
    for name, losses in found.by_class.items():
        for token, value in losses.items():
            yield Number("pre-training", name, "loss", value, against=f"label {token}")


def _interval(
    section: str, subject: str, metric: str, found: MeasuredInterval, rows: int | None = None, against: str = ""
) -> Number:
    p = found.p_holm if isinstance(found, TestedChange) else None
    return Number(section, subject, metric, found.value, found.low, found.high, p, rows, against)
