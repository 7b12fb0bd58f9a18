"""Simple models that a good model must beat on the same test rows: the popularity of the item, and one-hot logistic regression.

Both are fitted on training rows; their strength is chosen and their scores are calibrated on validation rows, as for the model.
Shapes: R test rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.splits import PARTS
from thinktwice.data.training_set import ROWS_FILE, TrainingSet
from thinktwice.evaluate.findings import logistic, sentences
from thinktwice.evaluate.findings.record import Baseline, Comparison
from thinktwice.models.fields import FieldSpace
from thinktwice.parquet import read_frame
from thinktwice.schema import LABEL
from thinktwice.stats.calibration import fit_platt
from thinktwice.stats.metrics import logloss, row_logloss
from thinktwice.stats.significance import auc_interval, paired_auc, paired_mean
from thinktwice.train.beside import Training
from thinktwice.versioned import MeasuredInterval

SMOOTHING = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # rows of the mean click rate that are added to each item


@dataclass(frozen=True)
class Scored:
    """Calibrated log-odds [R] of a baseline, and what it was fitted with."""

    name: Literal["popularity", "logistic regression"]
    rows: int
    strength: float
    logit: np.ndarray


@dataclass(frozen=True)
class Fitting:
    """The logistic regression of a training set while it is fitted, on so many training rows."""

    training: Training[logistic.Weights]
    fields: FieldSpace
    rows: int


@contextmanager
def fitting_baselines(data: TrainingSet) -> Iterator[Fitting]:
    """Fit what takes long beside other work, if a core is idle; at the end of the context it is stopped."""
    fields = FieldSpace.of(data.schema, data.encoder)
    rows = evenly(data.part("train"), logistic.affordable_rows(fields))
    with logistic.fitting(rows, data.part("valid"), fields) as training:
        yield Fitting(training, fields, len(rows))


def baseline_scores(
    data: TrainingSet, fitting: Fitting, valid: EncodedRows, test: EncodedRows
) -> tuple[list[Scored], list[str]]:
    """The baselines of a log, and sentences on those that it cannot have."""
    scored, missing = [], []
    key = data.schema.key_of("item")
    if key is None:
        missing.append("The log has no items, so there is no popularity to compare with.")
    else:
        frame = read_frame(data.folder / ROWS_FILE, [key, LABEL, "split"])
        parts = (frame.filter(pl.col("split") == part).select(key, LABEL) for part in PARTS)
        scored.append(popularity(*parts))
    scored.append(logistic_regression(fitting, valid, test))
    return scored, missing


def popularity(train: pl.DataFrame, valid: pl.DataFrame, test: pl.DataFrame) -> Scored:
    """The click rate of the item in training, smoothed towards that of all items: (clicks + s m) / (rows + s). All frames have the
    columns item and label."""
    key = train.columns[0]
    mean = float(train[LABEL].to_numpy().mean())
    items = train.drop_nulls(key).group_by(key).agg(pl.col(LABEL).sum().alias("clicks"), pl.len().alias("rows"))

    def counts(part: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        joined = part.join(items, on=key, how="left", maintain_order="left")
        clicks, rows = (joined[name].fill_null(0).to_numpy().astype(np.float64) for name in ("clicks", "rows"))
        return clicks, rows

    def logits(found: tuple[np.ndarray, np.ndarray], strength: float) -> np.ndarray:
        clicks, rows = found
        rate = (clicks + strength * mean) / (rows + strength)
        return np.log(rate) - np.log1p(-rate)

    on_valid, label = counts(valid), valid[LABEL].to_numpy().astype(np.float64)
    strength = min(SMOOTHING, key=lambda s: logloss(label, logits(on_valid, s)))
    a, b = fit_platt(logits(on_valid, strength), label)
    return Scored("popularity", train.height, strength, a * logits(counts(test), strength) + b)


def logistic_regression(fitting: Fitting, valid: EncodedRows, test: EncodedRows) -> Scored:
    """A weight for every value of every field that the model reads, its counters of the instant excepted."""
    fitted = logistic.fitted(fitting.training, fitting.fields)
    a, b = fit_platt(fitted.logits(valid), valid.label)
    return Scored("logistic regression", fitting.rows, fitted.prior, a * fitted.logits(test) + b)


def evenly(rows: EncodedRows, limit: int) -> EncodedRows:
    """At most ``limit`` rows, evenly spaced."""
    if len(rows) <= limit:
        return rows
    return rows.take(np.linspace(0, len(rows) - 1, limit).astype(np.int64))


def compared(
    label: np.ndarray, cluster: np.ndarray, logit: np.ndarray, baselines: list[Scored], missing: list[str]
) -> Comparison:
    """What ships, with log-odds ``logit`` [R], against every baseline on the same rows."""
    loss = row_logloss(label, logit)
    measured = tuple(
        Baseline(
            name=one.name,
            rows=one.rows,
            strength=one.strength,
            auc=MeasuredInterval.of(auc_interval(label, one.logit, cluster)),
            logloss=logloss(label, one.logit),
            auc_change=MeasuredInterval.of(paired_auc(label, one.logit, logit, cluster)),
            logloss_change=MeasuredInterval.of(paired_mean(loss - row_logloss(label, one.logit), cluster)),
        )
        for one in baselines
    )
    auc = MeasuredInterval.of(auc_interval(label, logit, cluster))
    return Comparison(
        auc=auc,
        logloss=float(loss.mean()),
        baselines=measured,
        missing=tuple(missing),
        sentence=" ".join(sentences.against(one) for one in measured),
    )


def is_good(comparison: Comparison) -> bool:
    """Whether AUC is above chance and above that of every baseline, beyond chance."""
    above_chance = comparison.auc.low is not None and comparison.auc.low > 0.5
    changes = [one.auc_change for one in comparison.baselines]
    return above_chance and all(change.significant and (change.value or 0.0) > 0 for change in changes)
