"""Leak check on a sample of rows: every feature must have the value that was known at the row's instant.

Attributes, statistics and sequences of the sampled rows are recomputed from the clean log by brute force, directly from their
definition, and compared with the result of the join.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from thinktwice.data.statistics import DAY_US, PRIOR_VIEWS
from thinktwice.errors import FeatureStoreError
from thinktwice.parquet import scan_frame
from thinktwice.schema import EVENT_TIME, LABEL, ROW_ID, LogSchema
from thinktwice.schema.fields import VALID_FROM, columns_of
from thinktwice.validate.side_tables import Side, clean_table

SAMPLE_ROWS = 40
TOLERANCE = 1e-9  # for sums in a different order

Ints = npt.NDArray[np.int64]


def assert_no_leak(
    table: pa.Table,
    clean: pa.Table,
    schema: LogSchema,
    tables: Mapping[Side, pl.LazyFrame] | None = None,
    *,
    sample_rows: int = SAMPLE_ROWS,
    seed: int = 0,
) -> int:
    """Recompute the features of a sample of rows and compare; returns the number of values compared.

    Args:
        table: training rows as :func:`feature_repo.retrieve.training_set` returns them, all rows of the log.
        clean: the clean rows they were made from, in the same order.
        tables: the clean side tables, see :func:`side_rows`.

    Raises:
        FeatureStoreError: an attribute differs from the latest one in the log, or another feature differs from the value
            known strictly before its row.
    """
    times = _integers(clean[EVENT_TIME].cast(pa.int64()))
    labels = _integers(clean[LABEL].cast(pa.int64()))
    picked = np.sort(np.random.default_rng(seed).permutation(len(times))[:sample_rows])
    compared = _compare_attributes(table, clean, schema, times, picked)
    for side, rows in (tables or {}).items():
        compared += _compare_side_table(table, clean, schema, side, rows, times, picked)
    for entity in schema.statistics.entities if schema.statistics else ():
        names = schema.statistic_names(entity)
        if not names:
            continue
        windows = schema.statistics.windows_days if schema.statistics else ()
        first_day, views, clicks = _daily(times, labels)
        for row, before in _rows_of_same(clean, schema.key_of(entity), picked):
            expected = (
                _statistics(
                    times[before] // DAY_US, labels[before], times[row] // DAY_US, windows, first_day, views, clicks
                )
                if before is not None
                else None
            )
            for number, name in enumerate(names):
                _compare(table, row, name, None if expected is None else expected[number])
                compared += 1
    for sequence in schema.computed_sequences:
        for row, same in _rows_of_same(clean, schema.key_of("user"), picked):
            expected_values: list[str] = []
            if same is not None:
                events = [
                    (int(times[i]), clean[ROW_ID][int(i)].as_py(), clean[sequence.of][int(i)].as_py())
                    for i in same
                    if times[i] < times[row] and (labels[i] == 1 or not sequence.clicks_only)
                ]
                expected_values = [v for _, _, v in sorted(e for e in events if e[2] is not None)][::-1][
                    : sequence.length
                ]
            _compare(table, row, sequence.name, expected_values)
            compared += 1
    return compared


def _compare_attributes(table: pa.Table, clean: pa.Table, schema: LogSchema, times: Ints, picked: Ints) -> int:
    """Compare attributes with those of the entity's latest impression up to and including the row's instant; ties: the last by id."""
    compared = 0
    entities: tuple[Literal["user", "item"], ...] = ("user", "item")
    for entity in entities:
        names = columns_of(schema.attributes_of(entity))
        names += [v.name for v in schema.vectors if v.entity == entity]
        names += [s.name for s in schema.logged_sequences if s.entity == entity]
        if not names or entity in schema.side_tables:
            continue
        for row, same in _rows_of_same(clean, schema.key_of(entity), picked):
            latest = None
            if same is not None:
                before = same[times[same] <= times[row]]
                latest_rows = before[times[before] == times[before].max()]
                latest = max((int(i) for i in latest_rows), key=lambda i: clean[ROW_ID][i].as_py())
            for name in names:
                expected = None if latest is None else clean[name][latest].as_py()
                actual = table[name][row].as_py()
                if actual != expected:
                    raise FeatureStoreError(
                        f"feature {name!r} of row {table[ROW_ID][row].as_py()} is {actual!r}, but the latest impression of this "
                        f"{entity} in the clean log has {expected!r}: materialize again from this log"
                    )
                compared += 1
    return compared


def side_rows(clean_dir: Path, schema: LogSchema) -> dict[Side, pl.LazyFrame]:
    """The clean side tables of a clean log."""
    return {side: scan_frame(clean_table(clean_dir, side)) for side in schema.side_tables}


def _compare_side_table(
    table: pa.Table, clean: pa.Table, schema: LogSchema, side: Side, rows: pl.LazyFrame, times: Ints, picked: Ints
) -> int:
    """Compare attributes with the newest row of the side table that is valid at the row's instant."""
    key = str(schema.key_of(side))
    names = columns_of(schema.table_fields(side)) + [v.name for v in schema.table_vectors(side)]
    names += [s.name for s in schema.table_sequences(side)]
    keys = [clean[key][int(row)].as_py() for row in picked]
    known = rows.filter(pl.col(key).is_in([k for k in keys if k is not None])).collect()
    valid_from = known[VALID_FROM].dt.epoch("us").to_list()
    compared = 0
    for row, wanted in zip(picked, keys, strict=True):
        valid = [
            i
            for i, (k, at) in enumerate(zip(known[key].to_list(), valid_from, strict=True))
            if k == wanted and at <= times[row]
        ]
        newest = known.row(max(valid, key=lambda i: valid_from[i]), named=True) if valid else None
        for name in names:
            expected = None if newest is None else newest[name]
            actual = table[name][int(row)].as_py()
            if actual != expected:
                raise FeatureStoreError(
                    f"feature {name!r} of row {table[ROW_ID][int(row)].as_py()} is {actual!r}, but the table of {side}s has {expected!r} at "
                    "its time: materialize again from this log"
                )
            compared += 1
    return compared


def _integers(column: pa.ChunkedArray) -> Ints:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _daily(times: Ints, labels: Ints) -> tuple[int, Ints, Ints]:
    """First day of the log, and its cumulative impressions and clicks before each day from the first on."""
    days = times // DAY_US
    first = int(days.min())
    views = np.bincount(days - first)
    clicks = np.bincount(days - first, weights=labels).astype(np.int64)
    return first, np.r_[0, np.cumsum(views)], np.r_[0, np.cumsum(clicks)]


def _rows_of_same(table: pa.Table, key: str | None, picked: Ints) -> list[tuple[int, Ints | None]]:
    """For each picked row: all rows with the same key, or None if the row has no key."""
    codes = table[key].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    candidates = np.flatnonzero(np.isin(codes, codes[picked]))
    candidate_codes = codes[candidates]
    return [(int(r), candidates[candidate_codes == codes[r]] if codes[r] >= 0 else None) for r in picked]


def _statistics(
    days: Ints, labels: Ints, today: int, windows: tuple[int, ...], first_day: int, all_views: Ints, all_clicks: Ints
) -> list[float] | None:
    """The statistics of an entity with events on ``days``, as of the last change up to ``today``."""
    changes = np.concatenate([days + 1, *(days + w + 1 for w in windows if w)])
    changes = changes[changes <= today]
    if not len(changes):
        return None
    at = int(changes.max())
    upto = min(at - first_day, len(all_views) - 1)
    prior = float(all_clicks[upto]) / float(all_views[upto])
    out: list[float] = []
    for window in windows:
        inside = (days < at) & (days >= at - window) if window else days < at
        views, clicks = int(inside.sum()), int(labels[inside].sum())
        out += [float(np.log2(1 + views)), (clicks + PRIOR_VIEWS * prior) / (views + PRIOR_VIEWS)]
    return out


def _compare(table: pa.Table, row: int, name: str, expected: float | list[str] | None) -> None:
    actual = table[name][row].as_py()
    if isinstance(expected, float) and isinstance(actual, float):
        same = abs(expected - actual) <= TOLERANCE * max(1.0, abs(expected))
    else:
        same = (actual or None) == (expected or None)
    if not same:
        raise FeatureStoreError(
            f"feature {name!r} of row {table[ROW_ID][row].as_py()} is {actual!r}, but what was known strictly before the row "
            f"gives {expected!r}: the feature looks into the future or lags behind, materialize again"
        )
