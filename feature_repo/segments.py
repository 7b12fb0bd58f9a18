# ruff: noqa: S608 - names in queries come from the schema (letters, digits, _) and are quoted
"""Segmentation of entities by time, which makes a quadratic point-in-time join linear.

A segment is a run of up to ``segment_rows`` rows of one entity in time order. It has its own join key (the entity's
key, a separator and a number) and its own copy of the change points that can be valid at any of its rows: those within
the segment's time range, and earlier ones only if not yet replaced when the segment begins. The join itself is done by the
feature store and finds for each row the same change point as in the whole table.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from thinktwice.data.feature_tables import CREATED_TIMESTAMP, EVENT_TIMESTAMP, TableSpec
from thinktwice.query import literal, quoted, source, written
from thinktwice.schema import EVENT_TIME, ROW_ID

SEGMENT_ROWS = 8
SEPARATOR = "\x1f"  # between key and segment number; unambiguous, because the number is last


def write_chunk(
    connection: duckdb.DuckDBPyConnection,
    chunk: pa.Table,
    specs: tuple[TableSpec, ...],
    data_dir: Path,
    out_dir: Path,
    segment_rows: int,
) -> pa.Table:
    """Write the segmented tables for ``chunk`` and return its rows with segmented keys.

    Args:
        chunk: ``row_id``, ``event_time`` and the join keys.
        data_dir: the feature tables.
        out_dir: receives one table of the same name and columns for each of ``specs``.

    Returns:
        ``row_id``, ``event_timestamp`` and the join keys, one row per row of ``chunk``.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    keys = {spec.entity: spec.key for spec in specs}
    connection.register("chunk", chunk)
    numbered = ", ".join(
        f"(row_number() OVER (PARTITION BY {quoted(key)} ORDER BY {EVENT_TIME}, {ROW_ID}) - 1) // {segment_rows} AS seg_{entity}"
        for entity, key in keys.items()
    )
    connection.execute(f"CREATE OR REPLACE TEMP TABLE numbered AS SELECT *, {numbered} FROM chunk")
    for entity, key in keys.items():
        connection.execute(f"""
            CREATE OR REPLACE TEMP TABLE segment_{entity} AS
            SELECT {quoted(key)} AS key, {_segment_key(key, entity)} AS segment,
                   min({EVENT_TIME}) AS first_at, max({EVENT_TIME}) AS last_at
            FROM numbered WHERE {quoted(key)} IS NOT NULL GROUP BY ALL
        """)
    for spec in specs:
        _write_table(connection, spec, data_dir / f"{spec.name}.parquet", out_dir / f"{spec.name}.parquet")
    selected = ", ".join(f"{_segment_key(key, entity)} AS {quoted(key)}" for entity, key in keys.items())
    rows = connection.sql(
        f"SELECT {ROW_ID}, {EVENT_TIME} AS {EVENT_TIMESTAMP}, {selected} FROM numbered"
    ).to_arrow_table()
    connection.unregister("chunk")
    return rows


def _segment_key(key: str, entity: str) -> str:
    return f"{quoted(key)} || {literal(SEPARATOR)} || seg_{entity}"


def _write_table(connection: duckdb.DuckDBPyConnection, spec: TableSpec, table: Path, target: Path) -> None:
    key = quoted(spec.key)
    columns = ", ".join(f"t.{quoted(f)}" for f in spec.features)
    # A change point ends when a newer one is known, which is after both timestamps of the newer one.
    connection.execute(f"""
        COPY (
            WITH span AS (
                SELECT {key} AS key, {EVENT_TIMESTAMP} AS valid_from,
                       min(greatest({EVENT_TIMESTAMP}, {CREATED_TIMESTAMP})) OVER (
                           PARTITION BY {key} ORDER BY {EVENT_TIMESTAMP} ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
                       ) AS valid_until
                FROM {source(table)} SEMI JOIN segment_{spec.entity} s ON {key} = s.key
            ),
            wanted AS (
                SELECT DISTINCT s.segment, p.key, p.valid_from
                FROM span p JOIN segment_{spec.entity} s ON p.key = s.key
                WHERE p.valid_from <= s.last_at AND (p.valid_until IS NULL OR p.valid_until > s.first_at)
            )
            SELECT w.segment AS {key}, t.{EVENT_TIMESTAMP}, t.{CREATED_TIMESTAMP}, {columns}
            FROM {source(table)} t JOIN wanted w ON t.{key} = w.key AND t.{EVENT_TIMESTAMP} = w.valid_from
        ) TO {written(target)} (FORMAT parquet)
    """)
