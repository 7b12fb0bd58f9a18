"""Evidence from logs in one call: join, outcomes, sums per unit, moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from thinktwice.experiment.assignment import BucketLayout, layout_of
from thinktwice.experiment.evidence import Evidence, collect
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.join import EXPOSURES, REQUESTS, Logs, join_exposures
from thinktwice.experiment.join_counts import JoinCounts
from thinktwice.experiment.outcomes import OUTCOMES, OutcomeCounts, Window, join_outcomes
from thinktwice.experiment.unit_sums import LATENCY, UNITS, arm_latencies, arm_moments, check_arms, write_unit_sums
from thinktwice.frozen import Frozen

SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Sources:
    """Paths of the logs since the experiment started.

    Attributes:
        before: ``units.parquet`` of the days before, for variance reduction; empty: no variance reduction.
        others: experiments of the same exclusive group.
        warm_replicas: number of servers that answer, by arm; None: not measured.
        log_write_failures: failed writes of the access log; None: not measured.
        rows_since: time before which the prediction logs were left out: no row is waited for; None: nothing was left out.
    """

    logs: Logs
    clicks: Sequence[Path]
    before: Sequence[Path] = ()
    others: Sequence[ExperimentFile] = ()
    warm_replicas: Mapping[str, int] | None = None
    log_write_failures: int | None = None
    rows_since: datetime | None = None


class Joined(Frozen):
    """Counts of both joins; their rows are in the same folder.

    Attributes:
        damaged: files kept by earlier looks that were damaged: they were set aside, and everything was joined again from the logs.
    """

    exposures: JoinCounts
    outcomes: OutcomeCounts
    damaged: int = 0


def gather(
    file: ExperimentFile,
    sources: Sources,
    out: Path,
    *,
    started: datetime,
    coverage_since: datetime,
    at: datetime,
    window: Window | None = None,
) -> Evidence:
    """Join the logs, write the results to ``out``, and return the current evidence.

    Args:
        started: when the first unit was enrolled.
        coverage_since: when the coverage last changed.
        at: time up to which all logs and clicks are complete.

    Raises:
        ExperimentError: a log is missing or damaged, or contains an arm that the experiment does not have.
        ValueError: times are out of order.
    """
    joined = join_logs(file, sources, out, at=at, window=window)
    return evidence_of(
        file,
        joined,
        out,
        started=started,
        coverage_since=coverage_since,
        at=at,
        before=sources.before,
        warm_replicas=sources.warm_replicas,
        log_write_failures=sources.log_write_failures,
    )


def join_logs(
    file: ExperimentFile, sources: Sources, out: Path, *, at: datetime, window: Window | None = None
) -> Joined:
    """Exposures, outcomes and sums by unit in ``out``, and their counts.

    Raises:
        ExperimentError: a log is missing or damaged.
    """
    exposures = join_exposures(sources.logs, widest_layout(file, sources.others), out, watermark=at)
    outcomes = join_outcomes([out / EXPOSURES], sources.clicks, out, at, window)
    write_unit_sums([out / OUTCOMES], [out / REQUESTS], out, file.slices)
    return Joined(exposures=exposures, outcomes=outcomes)


def widest_layout(file: ExperimentFile, others: Sequence[ExperimentFile]) -> BucketLayout:
    """The layout with the highest coverage of an experiment: enrolled at any coverage is enrolled there."""
    highest = max((step.coverage for step in file.ramp), default=file.coverage)
    return layout_of([file.model_copy(update={"coverage": max(highest, file.coverage)}), *others])


def evidence_of(
    file: ExperimentFile,
    joined: Joined,
    folders: Path | Sequence[Path],
    *,
    started: datetime,
    coverage_since: datetime,
    at: datetime,
    before: Sequence[Path] = (),
    warm_replicas: Mapping[str, int] | None = None,
    log_write_failures: int | None = None,
) -> Evidence:
    """The evidence in folders of :func:`join_logs` with different requests. For the other arguments see :func:`gather` and
    :class:`Sources`.

    Raises:
        ExperimentError: it contains an arm that the experiment does not have.
        ValueError: times are out of order.
    """
    if not started <= coverage_since <= at:
        raise ValueError(f"times are out of order: started {started}, coverage since {coverage_since}, now {at}")
    places = [folders] if isinstance(folders, Path) else folders
    units = [folder / UNITS for folder in places]
    sums = arm_moments(units, file.name, before=before)
    check_arms(sums, [arm.name for arm in file.arms], file.name)
    return collect(
        file,
        at=at,
        days=(at - started).total_seconds() / SECONDS_A_DAY,
        days_at_coverage=(at - coverage_since).total_seconds() / SECONDS_A_DAY,
        sums=sums,
        latencies=arm_latencies([folder / LATENCY for folder in places], file.name),
        slices={name: arm_moments(units, file.name, slice_name=name) for name in file.slices},
        exposures=joined.exposures,
        outcomes=joined.outcomes,
        warm_replicas=warm_replicas,
        log_write_failures=log_write_failures,
        damaged_files=joined.damaged,
    )
