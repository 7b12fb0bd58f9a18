"""The report of an experiment as versioned typed data, ready to be displayed without further computation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime

from thinktwice.errors import ExperimentError
from thinktwice.experiment.analysis import PrimaryResult, SliceResult
from thinktwice.experiment.checks import CheckResult
from thinktwice.experiment.decision import Decision
from thinktwice.experiment.evidence import MomentsModel, Number
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.guardrails import GuardrailResult
from thinktwice.experiment.join_counts import JoinCounts
from thinktwice.experiment.metrics import RATIOS
from thinktwice.experiment.outcomes import OutcomeCounts
from thinktwice.experiment.record import DecisionRecord
from thinktwice.experiment.remaining import standing
from thinktwice.files import write_json
from thinktwice.frozen import Frozen
from thinktwice.stats.difference import arm_estimate


class MetricValue(Frozen):
    """A metric in one arm, with its standard error; null with a flag if it is not defined."""

    metric: str
    value: Number
    se: Number
    flags: tuple[str, ...] = ()


class ArmReport(Frozen):
    arm: str
    bundle: str
    mode: str | None
    units: int
    metrics: tuple[MetricValue, ...]


class SeriesPoint(Frozen):
    """One line of the record, for plots over time."""

    at: AwareDatetime
    days: float
    coverage: float
    counted: bool  # whether it was a look at the primary metric
    action: str
    status: str
    standing: str  # the status in words, or what is left
    units: tuple[int, ...]  # by arm
    primary: tuple[PrimaryResult, ...]
    guardrails: tuple[GuardrailResult, ...]


class ExperimentReport(Frozen):
    """The whole experiment up to its last line."""

    format: Literal[1] = 1
    experiment: ExperimentFile
    method: str
    at: AwareDatetime
    days: float
    decision: Decision
    standing: str  # the status in words, or what is left
    arms: tuple[ArmReport, ...]
    primary: tuple[PrimaryResult, ...]
    guardrails: tuple[GuardrailResult, ...]
    checks: tuple[CheckResult, ...]
    slices: tuple[SliceResult, ...]
    exposures: JoinCounts | None
    outcomes: OutcomeCounts | None
    points: tuple[SeriesPoint, ...]
    damaged_files: int = 0  # over all looks


def report_of(records: Sequence[DecisionRecord]) -> ExperimentReport:
    """The report of a record.

    Raises:
        ExperimentError: the record is empty.
    """
    if not records:
        raise ExperimentError("the record is empty: decide first with `thinktwice experiment decide`")
    last = records[-1]
    file, evidence, verdict = last.file, last.evidence, last.verdict
    arms = []
    for arm in file.arms:
        arm_evidence = evidence.arm(arm.name)
        metrics = _values(arm_evidence.sums) if arm_evidence else ()
        if arm_evidence:
            metrics += tuple(
                MetricValue(metric=q.metric, value=q.value, se=q.se, flags=q.flags) for q in arm_evidence.quantiles
            )
        arms.append(
            ArmReport(
                arm=arm.name,
                bundle=arm.bundle,
                mode=arm.mode,
                units=arm_evidence.units if arm_evidence else 0,
                metrics=metrics,
            )
        )
    points = tuple(_point(r) for r in records)
    return ExperimentReport(
        experiment=file, method=file.test, at=evidence.at, days=evidence.days, decision=verdict.decision,
        standing=points[-1].standing, arms=tuple(arms),
        primary=verdict.primary, guardrails=verdict.guardrails, checks=verdict.checks, slices=verdict.slices,
        exposures=evidence.exposures, outcomes=evidence.outcomes, points=points,
        damaged_files=sum(record.evidence.damaged_files for record in records),
    )  # fmt: skip


def damaged_remark(number: int) -> str:
    """What is said about damaged files, see :class:`~thinktwice.experiment.evidence.Evidence`."""
    return (
        f"{number} files kept by earlier looks were damaged or missing; they were set aside in `look/damaged` beside the record, "
        "and everything was joined again from the logs"
    )


def write_report(report: ExperimentReport, path: Path | str) -> None:
    """Write the report as JSON."""
    write_json(path, report.model_dump(mode="json"))


def _point(record: DecisionRecord) -> SeriesPoint:
    evidence, verdict = record.evidence, record.verdict
    by_arm = {a.arm: a.units for a in evidence.arms}
    units = tuple(by_arm.get(a.name, 0) for a in record.file.arms)
    status = verdict.decision.status
    return SeriesPoint(
        at=evidence.at, days=evidence.days, coverage=evidence.coverage, counted=verdict.look is not None,
        action=verdict.decision.action, status=status, standing=standing(record.file, status, evidence.days, units),
        units=units, primary=verdict.primary, guardrails=verdict.guardrails,
    )  # fmt: skip


def _values(sums: MomentsModel) -> tuple[MetricValue, ...]:
    moments, values = sums.moments(), []
    for name, metric in RATIOS.items():
        if not {metric.numerator, metric.denominator} - {None} <= set(sums.names):
            continue
        value = arm_estimate(moments, metric)
        finite = not value.flags
        values.append(
            MetricValue(
                metric=name, value=value.value if finite else None, se=value.se if finite else None, flags=value.flags
            )
        )
    return tuple(values)
