"""Bundles of several runs side by side: each on its own test rows, with paired differences where the test rows are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from thinktwice.data.training_set import TrainingSet, load_training_set
from thinktwice.evaluate.evaluation import ColumnMetrics
from thinktwice.evaluate.from_bundle import evidence_of_test, score_bundle
from thinktwice.evaluate.measure import ScoreColumn, column_metrics
from thinktwice.release.bundle import load_bundle
from thinktwice.schema import EVENT_TIME, LABEL, ROW_ID
from thinktwice.stats import seeds, significance
from thinktwice.stats.metrics import row_logloss
from thinktwice.stats.significance import Interval, clusters_of
from thinktwice.threads import reproducible


@dataclass(frozen=True)
class Contestant:
    """A run to compare. ``settings`` describes everything but the seed; equal settings mean repeated training."""

    name: str
    settings: str
    seed: int
    bundle_dir: Path
    training_set_dir: Path


@dataclass(frozen=True)
class Change:
    """Differences from the first run, paired by row and clustered by user, 95 % each."""

    auc: Interval
    logloss: Interval


@dataclass(frozen=True)
class Side:
    """One run. ``change`` is None for the first run, and for a run on other test rows."""

    contestant: Contestant
    rows: int
    metrics: ColumnMetrics
    passes: float
    same_rows: bool
    change: Change | None


@dataclass(frozen=True)
class OverSeeds:
    """Runs of equal settings.

    ``seeds`` are all of them; ``auc`` and ``logloss`` are means over the seeds, None if not defined. ``change`` is the mean
    difference from the first settings over the seeds ``paired``, which both have on the same rows; None without such seeds.
    """

    settings: str
    seeds: tuple[int, ...]
    auc: float | None
    logloss: float | None
    paired: tuple[int, ...]
    change: Change | None


@dataclass(frozen=True)
class SideBySide:
    """``over_seeds`` is empty unless at least one of the settings was trained with several seeds."""

    sides: tuple[Side, ...]
    over_seeds: tuple[OverSeeds, ...]


@dataclass(frozen=True)
class _Scored:
    contestant: Contestant
    rows: str  # digest of the test rows
    label: np.ndarray
    cluster: np.ndarray
    column: ScoreColumn
    metrics: ColumnMetrics


@reproducible()
def compare_runs(contestants: Sequence[Contestant]) -> SideBySide:
    """Score the test rows of every run with its bundle and compare the runs.

    Raises:
        DataError: a training set is missing or damaged.
        BundleError: a bundle is missing or damaged.
        SchemaError: a bundle does not fit its training set.
    """
    scored = [_scored(contestant) for contestant in contestants]
    first = scored[0]
    sides = [
        Side(
            one.contestant,
            len(one.label),
            one.metrics,
            one.column.passes,
            one.rows == first.rows,
            None if one is first or one.rows != first.rows else _change(first, one),
        )
        for one in scored
    ]
    return SideBySide(tuple(sides), _over_seeds(scored))


def _scored(contestant: Contestant) -> _Scored:
    data, bundle = load_training_set(contestant.training_set_dir), load_bundle(contestant.bundle_dir)
    rows = data.rows("test")
    column, encoded = score_bundle(
        bundle, rows, key=contestant.name, label=contestant.name, evidence=evidence_of_test(bundle, data)
    )
    label, cluster = encoded.label.astype(np.float64), clusters_of(encoded.user)
    truth = rows["truth"].to_numpy() if "truth" in rows.columns else None
    metrics = column_metrics(label, column, cluster, truth)
    return _Scored(contestant, rows_digest(data, rows), label, cluster, column, metrics)


def rows_digest(data: TrainingSet, rows: pl.DataFrame) -> str:
    """Digest of the test rows: ids, times, labels, users and items in order. Features are not part of it.

    Row ids alone would not do: they are positions in a log, and another log has the same ones.
    """
    keys = [key for key in (data.schema.key_of("user"), data.schema.key_of("item")) if key in rows.columns]
    named = rows.select(
        pl.col(ROW_ID).cast(pl.String),
        pl.col(EVENT_TIME).dt.epoch("us").cast(pl.String),
        pl.col(LABEL).cast(pl.Float64).cast(pl.String),
        *(pl.col(str(key)).cast(pl.String).alias(f"key_{index}") for index, key in enumerate(keys)),
    )
    return hashlib.sha256(named.hash_rows().to_numpy().tobytes()).hexdigest()


def _change(first: _Scored, second: _Scored) -> Change:
    loss = row_logloss(second.label, second.column.logit) - row_logloss(first.label, first.column.logit)
    return Change(
        significance.paired_auc(first.label, first.column.logit, second.column.logit, first.cluster),
        significance.paired_mean(loss, first.cluster),
    )


def _over_seeds(scored: Sequence[_Scored]) -> tuple[OverSeeds, ...]:
    groups: dict[str, dict[int, _Scored]] = {}
    for one in scored:  # a run that repeats settings and seed is the same training
        groups.setdefault(one.contestant.settings, {}).setdefault(one.contestant.seed, one)
    if all(len(group) == 1 for group in groups.values()):
        return ()
    base = next(iter(groups.values()))
    found = []
    for settings, group in groups.items():
        paired = [] if group is base else [s for s in group if s in base and base[s].rows == group[s].rows]
        change = _mean_change([_change(base[s], group[s]) for s in paired], [base[s] for s in paired])
        found.append(
            OverSeeds(
                settings,
                tuple(group),
                _mean([one.metrics.auc for one in group.values()]),
                _mean([one.metrics.logloss for one in group.values()]),
                tuple(paired),
                change,
            )
        )
    return tuple(found)


def _mean_change(changes: list[Change], bases: list[_Scored]) -> Change | None:
    if not changes:
        return None
    freedom = [int(base.cluster.max(initial=0)) for base in bases]
    auc, logloss = (
        seeds.over_seeds(
            np.array([interval.value for interval in intervals]),
            np.array([significance.standard_error(i, f) for i, f in zip(intervals, freedom, strict=True)]),
        )
        for intervals in ([c.auc for c in changes], [c.logloss for c in changes])
    )
    return Change(auc, logloss)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
