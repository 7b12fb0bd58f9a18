"""Counts of joins of different requests, added up to those of all."""

# ruff: noqa: S608 - names are of our own lists, values are escaped by `literal`

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from thinktwice.experiment.join_counts import ArmCounts, JoinCounts
from thinktwice.experiment.outcomes import OutcomeCounts
from thinktwice.experiment.query import engine, parquet_table
from thinktwice.records.served import REQUEST_COLUMNS

SEEN_COLUMNS = pa.schema([REQUEST_COLUMNS.field(name) for name in ("experiment", "arm", "unit")])


def added(parts: Sequence[JoinCounts]) -> JoinCounts:
    """Sums of counts of different requests; counts of distinct units are those of :func:`with_units`."""
    numbers = {name: sum(getattr(part, name) for part in parts) for name in JoinCounts.model_fields if name != "arms"}
    arms: dict[tuple[str, str], list[ArmCounts]] = {}
    for part in parts:
        for arm in part.arms:
            arms.setdefault((arm.experiment, arm.arm), []).append(arm)
    fields = ("requests", "answered", "joined", "lost", "fallbacks", "units")
    added = [
        ArmCounts(
            experiment=experiment,
            arm=arm,
            versions=tuple(sorted({version for one in found for version in one.versions})),
            **{name: sum(getattr(one, name) for one in found) for name in fields},
        )
        for (experiment, arm), found in sorted(arms.items())
    ]
    return JoinCounts(**numbers, arms=tuple(added))


def added_outcomes(parts: Sequence[OutcomeCounts]) -> OutcomeCounts:
    return OutcomeCounts(**{name: sum(getattr(part, name) for part in parts) for name in OutcomeCounts.model_fields})


def clicks_alone(late: OutcomeCounts) -> OutcomeCounts:
    """The counts of clicks on closed requests, whose exposures are counted already."""
    return late.model_copy(update={"exposures": 0, "final": 0, "open": 0})


def with_units(counts: JoinCounts, seen: Sequence[Path], wrong: int, scratch: Path) -> JoinCounts:
    """Counts of distinct units, from the enrolled units of all requests."""
    with engine(scratch) as db:
        db.execute(
            f"CREATE TEMP TABLE seen AS SELECT DISTINCT experiment, arm, unit FROM {parquet_table(seen, SEEN_COLUMNS, 'requests')}"
        )
        rows = db.execute("SELECT experiment, arm, count(DISTINCT unit) FROM seen GROUP BY ALL").fetchall()
        ((two,),) = db.execute("""
            SELECT count(*) FROM (SELECT experiment, unit FROM seen WHERE unit IS NOT NULL
                GROUP BY experiment, unit HAVING count(DISTINCT arm) > 1)""").fetchall()
    units = {(experiment, arm): number for experiment, arm, number in rows}
    arms = tuple(arm.model_copy(update={"units": units.get((arm.experiment, arm.arm), 0)}) for arm in counts.arms)
    return counts.model_copy(update={"units_in_two_arms": two, "wrong_bucket": wrong, "arms": arms})
