"""Planning: how long an experiment must run, from the log of the past weeks."""

# ruff: noqa: S608 - names are of our own lists, values are escaped by `literal`

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from thinktwice.errors import ExperimentError
from thinktwice.experiment.evidence import Number, known
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.metrics import RATIOS
from thinktwice.experiment.query import day_of, engine
from thinktwice.frozen import Frozen
from thinktwice.query import quoted, source
from thinktwice.stats.difference import Metric, explained_share
from thinktwice.stats.moments import Moments
from thinktwice.stats.plan import SamplePlan, days_needed, horizon_of, plan

COUNTED = ("impressions", "clicks")


class PlanLine(Frozen):
    """The smallest effect the experiment can detect after a number of days."""

    days: int
    units_per_arm: int
    baseline: float
    minimum_detectable: float
    relative: Number
    power: Number


class ExperimentPlan(Frozen):
    """Plans for every length up to that of the log, at full coverage."""

    metric: str
    method: str
    alpha: float
    wanted_power: float
    inflation: float
    variance_reduction: float
    lines: tuple[PlanLine, ...]
    days_needed: int | None  # for the requested effect; null if the log is too short for it or no effect was requested


def plan_experiment(
    file: ExperimentFile,
    log: Path,
    *,
    unit: str,
    time: str,
    label: str,
    power: float = 0.8,
    relative_effect: float | None = None,
) -> ExperimentPlan:
    """Plan from a log of impressions in parquet with a unit, a time and a label (1 = click) in each row.

    The last days of the log represent the experiment; with a declared pre-period the days before them are the covariate.

    Raises:
        ExperimentError: the log is damaged, too short, or lacks a column, or the primary metric cannot be planned from it.
    """
    metric = RATIOS[file.primary.metric]
    if not {metric.numerator, metric.denominator} - {None} <= set(COUNTED):
        raise ExperimentError(
            f"{file.primary.metric} cannot be planned from impressions and clicks: use ctr, clicks_per_unit or impressions_per_unit"
        )
    before = file.pre_period.days if file.pre_period else 0
    max_days = max(1, round(file.horizon.days)) if file.horizon else 28
    moments_by_days = _moments(log, unit, time, label, before, max_days)
    looks = file.horizon.looks if file.horizon else max(moments_by_days)
    covariate = Metric(f"pre_{metric.numerator}", f"pre_{metric.denominator}" if metric.denominator else None)
    reduction = explained_share(moments_by_days[max(moments_by_days)], metric, [covariate]) if before else 0.0
    share = (file.buckets[1] - file.buckets[0]) / 10_000
    plans: list[SamplePlan] = []
    for days, moments in sorted(moments_by_days.items()):
        try:
            horizon = horizon_of(days, moments, metric)
            effect = None if relative_effect is None else relative_effect * abs(horizon.baseline)
            plans.append(
                plan(
                    horizon, method=file.test, looks=looks, alpha=file.alpha, power=power, arms=len(file.arms), coverage=share,
                    effect=effect, variance_reduction=reduction,
                )
            )  # fmt: skip
        except ValueError as error:
            raise ExperimentError(f"{log} cannot plan {days} days: {error}") from None
    needed = None if relative_effect is None else days_needed(plans, relative_effect * abs(plans[-1].baseline))
    lines = tuple(
        PlanLine(
            days=p.days, units_per_arm=p.units_per_arm, baseline=p.baseline, minimum_detectable=p.minimum_detectable,
            relative=known(p.relative), power=p.power,
        )
        for p in plans
    )  # fmt: skip
    return ExperimentPlan(
        metric=file.primary.metric, method=file.test, alpha=file.alpha, wanted_power=power, inflation=plans[-1].inflation,
        variance_reduction=reduction, lines=lines, days_needed=needed,
    )  # fmt: skip


def _moments(log: Path, unit: str, time: str, label: str, before: int, max_days: int) -> dict[int, Moments]:
    """Moments by length in days, over at most the last ``max_days`` days of the log."""
    if not log.is_file():
        raise ExperimentError(f"no log {log}: give a parquet file of impressions")
    table = source(log)
    with engine(log.parent) as db:
        types = {row[0]: str(row[1]) for row in db.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()}
        for name in (unit, time, label):
            if name not in types:
                raise ExperimentError(f"{log} has no column {name!r}; there are {', '.join(list(types)[:20])}")
        if not types[time].startswith(("TIMESTAMP", "DATE")):
            raise ExperimentError(
                f"column {time!r} of {log} is {types[time]}, not a time: plan from the clean log of a validation"
            )
        if not re.fullmatch(r"BOOLEAN|U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)", types[label]):
            raise ExperimentError(
                f"column {label!r} of {log} is {types[label]}, not 0 or 1: plan from the clean log of a validation"
            )
        number = f"CAST({quoted(label)} AS DOUBLE)"
        odd = db.execute(
            f"SELECT CAST({quoted(label)} AS VARCHAR) FROM {table} WHERE {number} NOT IN (0, 1) OR {number} IS NULL LIMIT 1"
        ).fetchall()
        if odd:
            raise ExperimentError(
                f"column {label!r} of {log} contains {odd[0][0]}, not 0 or 1: plan from the clean log of a validation"
            )
        db.execute(f"""
            CREATE TEMP TABLE d AS
            SELECT CAST({quoted(unit)} AS VARCHAR) AS unit, {day_of(quoted(time))} AS day,
                count(*) AS impressions, sum(CAST({quoted(label)} AS DOUBLE)) AS clicks
            FROM {table} WHERE {quoted(unit)} IS NOT NULL AND {quoted(time)} IS NOT NULL GROUP BY ALL
        """)
        ((first, last),) = db.execute("SELECT min(day), max(day) FROM d").fetchall()
        if first is None:
            raise ExperimentError(
                f"{log} contains no row with a unit and a time: plan from the clean log of a validation"
            )
        longest = min(max_days, last - first + 1 - before)
        if longest < 1:
            raise ExperimentError(
                f"{log} spans {last - first + 1} days, too short for a pre-period of {before} days and an experiment: give a longer log"
            )
        start = last - longest + 1
        moments_by_days = {}
        for days in range(1, longest + 1):
            rows = db.execute(
                f"""SELECT sum(impressions) FILTER (day >= {start}) AS impressions, sum(clicks) FILTER (day >= {start}) AS clicks,
                    coalesce(sum(impressions) FILTER (day < {start}), 0) AS pre_impressions,
                    coalesce(sum(clicks) FILTER (day < {start}), 0) AS pre_clicks
                FROM d WHERE day >= {start - before} AND day < {start + days}
                GROUP BY unit HAVING count(*) FILTER (day >= {start}) > 0"""
            ).fetchnumpy()
            names = (*COUNTED, *(f"pre_{name}" for name in COUNTED))
            moments_by_days[days] = Moments.of(
                names, np.stack([np.asarray(rows[n], np.float64) for n in names], axis=1)
            )
    return moments_by_days
