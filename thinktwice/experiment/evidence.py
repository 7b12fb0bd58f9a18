"""Evidence of one look: everything a decision is based on, small enough to be stored with it permanently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import numpy as np
from pydantic import AwareDatetime, Field, model_validator

from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.join_counts import JoinCounts
from thinktwice.experiment.metrics import SUMS, quantile_share
from thinktwice.experiment.outcomes import OutcomeCounts
from thinktwice.frozen import Frozen
from thinktwice.stats.moments import Moments
from thinktwice.stats.quantiles import Histogram, quantile

Number = float | None  # None: not finite, or not known


class MomentsModel(Frozen):
    """:class:`thinktwice.stats.moments.Moments` as JSON; a number that is not finite is null."""

    names: tuple[str, ...]
    num_units: int = Field(ge=0)
    mean: tuple[Number, ...]
    scatter: tuple[tuple[Number, ...], ...]

    @model_validator(mode="after")
    def _consistent(self) -> MomentsModel:
        k = len(self.names)
        if len(self.mean) != k or len(self.scatter) != k or any(len(row) != k for row in self.scatter):
            raise ValueError(f"{k} sums need {k} means and a scatter of {k} by {k}")
        return self

    @classmethod
    def of(cls, moments: Moments) -> MomentsModel:
        return cls(
            names=moments.names,
            num_units=moments.num_units,
            mean=tuple(known(v) for v in moments.mean),
            scatter=tuple(tuple(known(v) for v in row) for row in moments.scatter),
        )

    def moments(self) -> Moments:
        content = {
            "names": list(self.names),
            "num_units": self.num_units,
            "mean": [_number(v) for v in self.mean],
            "scatter": [[_number(v) for v in row] for row in self.scatter],
        }
        return Moments.from_json(content)


class QuantileModel(Frozen):
    """A quantile of one arm with its standard error; both null if there are flags, which give the reason."""

    metric: str
    value: Number
    se: Number
    num_rows: int
    flags: tuple[str, ...] = ()


class ArmEvidence(Frozen):
    """One arm. ``units``: enrolled so far; ``warm_replicas``: servers that answer (None: not measured)."""

    arm: str
    units: int = Field(ge=0)
    sums: MomentsModel
    quantiles: tuple[QuantileModel, ...] = ()
    warm_replicas: int | None = None


class SliceEvidence(Frozen):
    """One arm within one value of a declared slice."""

    slice: str
    value: str
    arm: str
    sums: MomentsModel


class Evidence(Frozen):
    """One look.

    Attributes:
        days: since the first unit was enrolled.
        days_at_coverage: since the coverage last changed.
        log_write_failures: failed writes of the gateway's access log since the start (None: not measured).
        damaged_files: files kept by earlier looks that were damaged; all logs were joined again instead.
    """

    format: Literal[1] = 1
    at: AwareDatetime
    days: float = Field(ge=0, allow_inf_nan=False)
    days_at_coverage: float = Field(ge=0, allow_inf_nan=False)
    coverage: float = Field(ge=0, le=1)
    arms: tuple[ArmEvidence, ...]
    slices: tuple[SliceEvidence, ...] = ()
    exposures: JoinCounts | None = None
    outcomes: OutcomeCounts | None = None
    log_write_failures: int | None = None
    damaged_files: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Evidence:
        arms = [a.arm for a in self.arms]
        if len(set(arms)) < len(arms):
            raise ValueError(f"an arm is repeated: {', '.join(arms)}")
        names = {a.sums.names for a in self.arms if a.sums.names}
        if len(names) > 1 or any(not set(SUMS) <= set(n) for n in names):
            raise ValueError(f"every arm needs the same sums, these among them: {', '.join(SUMS)}")
        if any(s.sums.names and not set(SUMS) <= set(s.sums.names) for s in self.slices):
            raise ValueError(f"every slice needs the sums {', '.join(SUMS)}")
        return self

    def arm(self, name: str) -> ArmEvidence | None:
        return next((a for a in self.arms if a.arm == name), None)


def collect(
    file: ExperimentFile,
    *,
    at: datetime,
    days: float,
    days_at_coverage: float,
    sums: Mapping[tuple[str, str], Moments],
    latencies: Mapping[str, Histogram],
    slices: Mapping[str, Mapping[tuple[str, str], Moments]],
    exposures: JoinCounts | None,
    outcomes: OutcomeCounts | None,
    warm_replicas: Mapping[str, int] | None = None,
    log_write_failures: int | None = None,
    damaged_files: int = 0,
) -> Evidence:
    """Evidence of one look from what ``unit_sums`` read; an arm without data has zero units."""
    names = next(iter(sums.values())).names if sums else ()
    counted = {a.arm: a.units for a in exposures.arms if a.experiment == file.name} if exposures else {}
    quantile_metrics = [g.metric for g in file.guardrails if quantile_share(g.metric) is not None]
    arms = []
    for arm in file.arms:
        moments = sums.get(("", arm.name), Moments.empty(names))
        arms.append(
            ArmEvidence(
                arm=arm.name,
                units=counted.get(arm.name, moments.num_units),
                sums=MomentsModel.of(moments),
                quantiles=tuple(_quantile(name, latencies.get(arm.name)) for name in quantile_metrics),
                warm_replicas=None if warm_replicas is None else warm_replicas.get(arm.name, 0),
            )
        )
    parts = [
        SliceEvidence(slice=name, value=value, arm=arm, sums=MomentsModel.of(moments))
        for name, sums_of_slice in slices.items()
        for (value, arm), moments in sorted(sums_of_slice.items())
    ]
    return Evidence(
        at=at, days=days, days_at_coverage=days_at_coverage, coverage=file.coverage, arms=tuple(arms), slices=tuple(parts),
        exposures=exposures, outcomes=outcomes, log_write_failures=log_write_failures, damaged_files=damaged_files,
    )  # fmt: skip


def known(value: float) -> Number:
    """The number, or None if it is not finite."""
    return float(value) if math.isfinite(value) else None


def _quantile(metric: str, histogram: Histogram | None) -> QuantileModel:
    share = quantile_share(metric)
    if histogram is None or share is None:
        return QuantileModel(metric=metric, value=None, se=None, num_rows=0, flags=("no_rows",))
    estimate = quantile(histogram, share)
    return QuantileModel(
        metric=metric,
        value=known(estimate.value),
        se=known(estimate.se),
        num_rows=estimate.num_rows,
        flags=estimate.flags,
    )


def _number(value: Number) -> float:
    return np.nan if value is None else value
