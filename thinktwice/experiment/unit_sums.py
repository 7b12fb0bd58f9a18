"""Sums per unit from joined logs: one small table, from which all statistics are computed.

``units.parquet`` has a row for each experiment, arm, unit and day with the sums of ``metrics.SUMS``, and the same for each
value of each declared slice. Days add by unit; shards of disjoint units add as moments. ``latency.parquet`` has counts by
arm, group of units and bin, which always add.

Probabilities and latencies are rounded to binary fractions before they are added, so that a sum does not depend on the order: parts of a
log that are added up look by look give the same bits as the whole.
"""

# ruff: noqa: S608 - names are of our own lists, values are escaped by `literal`

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from thinktwice.errors import ExperimentError
from thinktwice.experiment.metrics import SUMS
from thinktwice.experiment.query import day_of, engine, parquet_table, write_parquet
from thinktwice.query import literal, quoted
from thinktwice.records.exposure import ASSIGNED, ENROLLED, EXPERIMENT, UNIT
from thinktwice.records.served import AT, LABEL, NUM_PATHS, PROBABILITY, REQUEST_COLUMNS
from thinktwice.stats.moments import Moments
from thinktwice.stats.quantiles import GROUPS, Histogram, HistogramBins

UNITS, LATENCY = "units.parquet", "latency.parquet"
ALL = ""  # slice of all rows
BINS = HistogramBins()  # of latencies in milliseconds
# Steps of the rounded values. Float64 adds them exactly up to 2^53 steps: 2 million impressions of a user, 8 * 10^9 ms of a bin.
PROBABILITY_STEP, MS_STEP = 2.0**-32, 2.0**-20
BLOCK = 1 << 16  # units whose moments are computed at once

UNIT_COLUMNS = pa.schema(
    [
        ("experiment", pa.string()),
        ("arm", pa.string()),
        ("slice", pa.string()),  # name of the column; "" for all rows
        ("value", pa.string()),
        ("unit", pa.uint64()),
        ("day", pa.int32()),  # since 1970, UTC
        *((name, pa.float64()) for name in SUMS),
    ]
)
LATENCY_COLUMNS = pa.schema(
    [
        ("experiment", pa.string()),
        ("arm", pa.string()),
        ("group", pa.int32()),
        ("bin", pa.int32()),
        ("count", pa.float64()),
        ("sum", pa.float64()),
    ]
)
_FROM_OUTCOMES = pa.schema(
    [
        (EXPERIMENT, pa.string()),
        (ASSIGNED, pa.string()),
        (ENROLLED, pa.bool_()),
        (UNIT, pa.uint64()),
        (AT, pa.timestamp("us", "UTC")),
        (LABEL, pa.int8()),
        (PROBABILITY, pa.float64()),
        (NUM_PATHS, pa.int32()),
    ]
)


def write_unit_sums(
    outcomes: Sequence[Path], requests: Sequence[Path], out: Path, slices: Sequence[str] = (), memory: str = "2GB"
) -> None:
    """Write ``units.parquet`` and ``latency.parquet`` into ``out``.

    A request whose unit no server logged counts as a separate unit, so that no error is lost.

    Raises:
        ExperimentError: a file is damaged or lacks a column, a declared slice among them.
    """
    out.mkdir(parents=True, exist_ok=True)
    columns = pa.schema([*_FROM_OUTCOMES, *((name, pa.null()) for name in slices)])
    shown = parquet_table(outcomes, columns, "outcomes")
    request_rows = parquet_table(requests, REQUEST_COLUMNS, "requests")
    parts = [_rows_of("''", "''", shown)]
    parts += [_rows_of(f"'{name}'", f"coalesce(CAST({quoted(name)} AS VARCHAR), '')", shown) for name in slices]
    parts.append(f"""
        SELECT experiment, arm, '' AS slice, '' AS value,
            coalesce(unit, hash(request_id)) AS unit, {day_of('"at"')} AS day, count(*) AS requests,
            count(*) FILTER (code IS NULL OR code NOT BETWEEN 200 AND 299) AS errors,
            count(*) FILTER (code BETWEEN 200 AND 299 AND served <> arm) AS fallbacks,
            0 AS impressions, 0 AS clicks, 0 AS escalated, 0 AS probability, 0 AS paths
        FROM {request_rows} GROUP BY ALL
    """)
    sums = ", ".join(f"CAST(sum({name}) AS DOUBLE) AS {name}" for name in SUMS)
    step = float(np.log1p(BINS.width))
    with engine(out, memory) as db:
        write_parquet(
            db,
            f"SELECT experiment, arm, slice, value, unit, day, {sums} FROM ({' UNION ALL '.join(parts)}) GROUP BY ALL",
            out / UNITS,
        )
        # The bins of ``HistogramBins.position``, in SQL.
        bin_sql = f"least(greatest(CAST(floor(ln(ms / {BINS.lowest}) / {step!r}) AS INTEGER) + 1, 0), {BINS.count - 1})"
        write_parquet(
            db,
            f"""SELECT experiment, arm, CAST(coalesce(unit, hash(request_id)) % {GROUPS} AS INTEGER) AS "group",
                    CASE WHEN ms < {BINS.lowest} THEN 0 ELSE {bin_sql} END AS bin,
                    CAST(count(*) AS DOUBLE) AS "count", sum({_rounded("ms", MS_STEP)}) AS "sum"
                FROM {request_rows} WHERE ms >= 0 AND isfinite(ms) GROUP BY ALL""",
            out / LATENCY,
        )


def add_sums(folders: Sequence[Path], out: Path) -> None:
    """Add the tables of :func:`write_unit_sums` of different requests, and write them to ``out``.

    Raises:
        ExperimentError: a file is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    of_units = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
    of_bins = 'sum("count") AS "count", sum("sum") AS "sum"'
    with engine(out) as db:
        for name, columns, num_keys, sums in (
            (UNITS, UNIT_COLUMNS, 6, of_units),
            (LATENCY, LATENCY_COLUMNS, 4, of_bins),
        ):
            table = parquet_table([folder / name for folder in folders], columns, "sums per unit")
            keys = ", ".join(quoted(key) for key in columns.names[:num_keys])
            write_parquet(db, f"SELECT {keys}, {sums} FROM {table} GROUP BY {keys}", out / name)


def write_past_sums(outcomes: Sequence[Path], target: Path, since: datetime, until: datetime) -> None:
    """Write the sums of every unit and day from ``since`` to before ``until``, in any experiment or none: they have no arm.

    Raises:
        ExperimentError: a file is damaged or lacks a column.
    """
    shown = parquet_table(outcomes, _FROM_OUTCOMES, "outcomes")
    begin, end = (f"TIMESTAMPTZ {literal(time.isoformat())}" for time in (since, until))
    rows = (
        f"SELECT {_SHOWN_SUMS} FROM {shown} WHERE {UNIT} IS NOT NULL AND {AT} >= {begin} AND {AT} < {end} GROUP BY ALL"
    )
    sums = ", ".join(f"CAST({name} AS DOUBLE) AS {name}" for name in SUMS)
    with engine(target.parent) as db:
        write_parquet(
            db, f"SELECT '' AS experiment, '' AS arm, '' AS slice, '' AS value, unit, day, {sums} FROM ({rows})", target
        )


def _rows_of(name: str, value: str, shown: str) -> str:
    return f"""
        SELECT {EXPERIMENT} AS experiment, {ASSIGNED} AS arm, {name} AS slice, {value} AS value, {_SHOWN_SUMS}
        FROM {shown} WHERE {ENROLLED} AND {UNIT} IS NOT NULL GROUP BY ALL
    """


def _rounded(column: str, step: float) -> str:
    return f"round(CAST({column} AS DOUBLE) * {1 / step!r}) * {step!r}"


#: Sums of shown rows by unit and day.
_SHOWN_SUMS = f"""{UNIT} AS unit, {day_of(AT)} AS day, 0 AS requests, 0 AS errors, 0 AS fallbacks, count(*) AS impressions,
            sum({LABEL}) AS clicks, count(*) FILTER ({NUM_PATHS} > 1) AS escalated,
            sum({_rounded(PROBABILITY, PROBABILITY_STEP)}) AS probability, sum({NUM_PATHS}) AS paths"""


def arm_moments(
    units: Sequence[Path],
    experiment: str,
    *,
    slice_name: str = ALL,
    before: Sequence[Path] = (),
    until_day: int | None = None,
    memory: str = "2GB",
) -> dict[tuple[str, str], Moments]:
    """Moments by (value of the slice, arm); for all rows the value is "".

    Args:
        units: files of :func:`write_unit_sums`; days of one unit add.
        before: the same for the days before the experiment; its arms are ignored, and a unit without rows counts as zeros.
        until_day: last day that counts.

    Units seen in two arms are left out (the join counts them).
    """
    table = parquet_table(units, UNIT_COLUMNS, "sums per unit")
    past = parquet_table(before, UNIT_COLUMNS, "sums per unit before the experiment") if before else None
    names = [*SUMS, *(f"pre_{name}" for name in SUMS)] if past else list(SUMS)
    sums = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
    day = "" if until_day is None else f"AND day <= {int(until_day)}"
    inner = f"""
        SELECT value, min(arm) AS arm, unit, {sums} FROM {table}
        WHERE experiment = ? AND slice = ? {day} GROUP BY value, unit HAVING min(arm) = max(arm)
    """
    if past:
        pre = ", ".join(f"sum({name}) AS pre_{name}" for name in SUMS)
        filled = ", ".join(f"coalesce(p.pre_{name}, 0) AS pre_{name}" for name in SUMS)
        inner = f"""
            SELECT u.*, {filled} FROM ({inner}) u
            LEFT JOIN (SELECT unit, {pre} FROM {past} WHERE slice = '' GROUP BY unit) p USING (unit)
        """
    scratch = (units[0] if units else Path()).parent
    with engine(scratch, memory) as db:
        sums_by_unit = f"SELECT value, arm, {', '.join(names)} FROM ({inner}) ORDER BY value, arm, unit"
        batches = db.sql(sums_by_unit, params=[experiment, slice_name]).to_arrow_reader(BLOCK)
        return _moments(batches, names)


def _moments(batches: Iterable[pa.RecordBatch], names: Sequence[str]) -> dict[tuple[str, str], Moments]:
    """Moments by (value, arm) of rows in their order, added in blocks of one size: the same rows always give the same bits."""
    moments: dict[tuple[str, str], Moments] = {}
    rest: dict[tuple[str, str], np.ndarray] = {}  # rows [R, K] of the current value and arm, fewer than a block

    def add(key: tuple[str, str], rows: np.ndarray) -> None:
        moments[key] = moments.get(key, Moments.empty(names)) + Moments.of(names, rows)

    for batch in batches:
        keys = list(zip(batch["value"].to_pylist(), batch["arm"].to_pylist(), strict=True))
        values = np.stack([np.asarray(batch[name], np.float64) for name in names], axis=1)
        starts = [0, *(i for i in range(1, len(keys)) if keys[i] != keys[i - 1])] if keys else []
        for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True):
            key = keys[start]
            for old in [old for old in rest if old != key]:
                add(old, rest.pop(old))
            rows = np.concatenate([rest.pop(key, values[:0]), values[start:stop]])
            while len(rows) >= BLOCK:
                add(key, rows[:BLOCK])
                rows = rows[BLOCK:]
            if len(rows):
                rest[key] = rows
    for key, rows in rest.items():
        add(key, rows)
    return moments


def arm_latencies(files: Sequence[Path], experiment: str) -> dict[str, Histogram]:
    """Latency histograms by arm."""
    table = parquet_table(files, LATENCY_COLUMNS, "latencies")
    histograms: dict[str, Histogram] = {}
    with engine((files[0] if files else Path()).parent) as db:
        rows = db.execute(
            f"""SELECT arm, "group", bin, sum("count") AS n, sum("sum") AS s FROM {table}
                WHERE experiment = ? GROUP BY ALL ORDER BY ALL""",
            [experiment],
        ).fetchnumpy()
    arms = np.asarray(rows["arm"], object)
    for arm in sorted(set(arms.tolist())):
        use = arms == arm
        counts, sums = np.zeros((GROUPS, BINS.count)), np.zeros(BINS.count)
        counts[rows["group"][use], rows["bin"][use]] = rows["n"][use]
        np.add.at(sums, rows["bin"][use], rows["s"][use])
        histograms[arm] = Histogram(BINS, counts, sums)
    return histograms


def check_arms(moments: dict[tuple[str, str], Moments], arms: Sequence[str], experiment: str) -> None:
    """Refuse data of an arm that the experiment does not have.

    Raises:
        ExperimentError: there is such an arm.
    """
    if unknown := sorted({arm for _, arm in moments} - set(arms)):
        raise ExperimentError(
            f"the logs contain the arm {unknown[0]!r}, which {experiment} does not have: {', '.join(arms)}"
        )
