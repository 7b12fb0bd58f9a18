# ruff: noqa: S608 - names in queries come from the schema (letters, digits, _) and are quoted
"""Causes of differences between served and stored values: the value was served too late, too early, or never existed."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from thinktwice.data.feature_tables import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ColumnKind, TableSpec
from thinktwice.monitor.skew import RELATIVE, Causes
from thinktwice.query import engine, one_row, quoted, source

MAX_ROWS = 10_000  # maximum differing rows per field that are examined


def causes(differing: pl.DataFrame, spec: TableSpec, name: str, kind: ColumnKind, data_dir: Path) -> Causes:
    """Look up the served values in all change points of their users or items.

    Args:
        differing: ``key``, ``instant`` and ``served`` value of rows that differ.
        spec: the table of the field ``name``, in ``data_dir``.
    """
    differing = differing.head(MAX_ROWS).with_row_index("number")
    same = f"abs(value - served) <= {RELATIVE} * abs(served)" if kind == "number" else "value = served"
    key, column = quoted(spec.key), quoted(name)
    with engine(data_dir) as connection:
        connection.register("differing", differing.to_arrow())
        old, early, hours_old, hours_early = one_row(
            connection,
            f"""
            WITH span AS (
                SELECT {key} AS key, {column} AS value, greatest({EVENT_TIMESTAMP}, {CREATED_TIMESTAMP}) AS valid_from,
                       lead(greatest({EVENT_TIMESTAMP}, {CREATED_TIMESTAMP})) OVER (
                           PARTITION BY {key} ORDER BY {EVENT_TIMESTAMP}
                       ) AS valid_until
                FROM {source(data_dir / f"{spec.name}.parquet")}
                WHERE {key} IN (SELECT key FROM differing)
            ),
            hit AS (SELECT number, instant, valid_from, valid_until FROM differing JOIN span USING (key) WHERE {same}),
            per_row AS (
                SELECT number,
                       min(epoch_us(instant) - epoch_us(valid_until)) FILTER (WHERE valid_until <= instant) AS old,
                       min(epoch_us(valid_from) - epoch_us(instant)) FILTER (WHERE valid_from > instant) AS early
                FROM hit GROUP BY number
            )
            SELECT count(*) FILTER (WHERE old IS NOT NULL),
                   count(*) FILTER (WHERE old IS NULL AND early IS NOT NULL),
                   median(old) FILTER (WHERE old IS NOT NULL) / 3.6e9,
                   median(early) FILTER (WHERE old IS NULL AND early IS NOT NULL) / 3.6e9
            FROM per_row
        """,
        )
    return Causes(differing.height, old, early, differing.height - old - early, hours_old, hours_early)
