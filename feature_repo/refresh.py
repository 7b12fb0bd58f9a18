# ruff: noqa: S608 - names in queries come from the schema (letters, digits, _) and are quoted
"""Brings the online values of served features up to date from a later log, with the definitions of the served store.

The store's folder does not change: its settings and registry are read, and rows are written to its Redis. Running it again writes the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_repo.readback import online_rows, same_value
from feature_repo.store import FeatureStoreInfo, open_store, over_tables, quiet, read_info
from feature_repo.tables_engine import feast_engine
from thinktwice.data.feature_tables import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    FeatureTables,
    TableSpec,
    build_feature_tables,
    from_microseconds,
)
from thinktwice.data.window import window_of
from thinktwice.errors import DataError, FeatureStoreError
from thinktwice.files import atomic_dir, write_json
from thinktwice.progress import track
from thinktwice.query import engine, literal, quoted, source
from thinktwice.release.feature_store import DATA
from thinktwice.schema import SCHEMA_FILE, LogSchema, load_schema

if TYPE_CHECKING:
    from feast import FeatureStore

REFRESH_FILE = "refresh.json"
BATCH_KEYS = 2_000  # users or items per read of the online store
AT = "at_us"


@dataclass(frozen=True)
class RefreshedView:
    """What was written for one view: keys with a row in the window, and those of them whose online row is newer."""

    name: str
    keys: int
    newer: int
    latest: str  # ISO 8601 UTC, of the latest row in the window; "" if there is none


@dataclass(frozen=True)
class Refresh:
    """The content of ``refresh.json``: the window ``[start, end)`` (ISO 8601 UTC) and what was written for every view."""

    project: str
    feature_version: str
    start: str
    end: str
    views: tuple[RefreshedView, ...]


def refresh(
    clean_dir: Path | str, store_dir: Path | str, out_dir: Path | str, *, until: str = "", window_days: int = 0
) -> Refresh:
    """Compute the feature tables of a clean log and write their latest rows of ``[start, end)`` to the online store; read all of them back.

    Args:
        clean_dir: clean log with its schema; it has all impressions that the features count, not only new ones.
        store_dir: feature store folder of the served model.
        out_dir: folder to write, with the tables and ``refresh.json``; an existing one is replaced.
        until: the end of the window, as ``--until`` of the log; "" for the midnight that closes the log's last day.
        window_days: the window starts this many days before its end; 0 for the log's first row.

    Raises:
        FeatureStoreError: the store keeps no values outside its folder, or has other definitions; Redis does not respond, or returns other values.
        DataError: the clean log is missing or empty, or the window is.
    """
    store_dir, clean_dir = Path(store_dir), Path(clean_dir)
    info, schema = read_info(store_dir), load_schema(clean_dir / SCHEMA_FILE)
    _check(store_dir, info, schema)
    with atomic_dir(out_dir) as folder:
        tables = build_feature_tables(clean_dir, folder / DATA, schema)
        start, end = _window(tables, schema, until, window_days)
        with over_tables(store_dir, folder / DATA) as scratch, feast_engine(scratch):
            views = tuple(
                _refresh_view(scratch, spec, start, end)
                for spec in track(tables.specs, stage="refresh", total=len(tables.specs), label="online store")
            )
        done = Refresh(info.project, info.feature_version, start.isoformat(), end.isoformat(), views)
        write_json(folder / REFRESH_FILE, asdict(done))
    return done


def _check(store_dir: Path, info: FeatureStoreInfo, schema: LogSchema) -> None:
    if info.online_store != "redis" or not info.feature_service:
        raise FeatureStoreError(
            f"{store_dir} keeps no online values outside its folder, which never changes: train with --online-store redis, or run the "
            "training pipeline again"
        )
    if schema.to_yaml() != load_schema(store_dir / SCHEMA_FILE).to_yaml():
        raise FeatureStoreError(
            f"the log has another schema than the served features in {store_dir}: train a model with the new schema, or read the log with "
            "the schema of that folder"
        )


def _window(tables: FeatureTables, schema: LogSchema, until: str, window_days: int) -> tuple[datetime, datetime]:
    end_us = window_of("", until, schema).until
    end = tables.end if end_us is None else from_microseconds(end_us)
    start = end - timedelta(days=window_days) if window_days else tables.start
    if start >= end:
        raise DataError(
            f"the log begins at {start.isoformat()}, which is not before {end.isoformat()}: nothing to write"
        )
    return start, end


def _refresh_view(folder: Path, spec: TableSpec, start: datetime, end: datetime) -> RefreshedView:
    with open_store(folder) as store, open_store(folder, overwrite=True) as overwriting, quiet():
        # Feast includes both ends.
        store.materialize(start, end - timedelta(microseconds=1), feature_views=[spec.name])
        keys = newer = latest = 0
        for rows in _latest(folder / DATA, spec, start, end):
            times = rows[AT].to_pylist()
            keys, latest = keys + len(times), max(latest, *times)
            newer += _settle(store, overwriting, spec, rows)
    return RefreshedView(spec.name, keys, newer, from_microseconds(latest).isoformat() if keys else "")


def _settle(store: FeatureStore, overwriting: FeatureStore, spec: TableSpec, rows: pa.RecordBatch) -> int:
    """Read rows back. A row of the same time with other values is replaced: Feast keeps the first one, which an earlier log that ended within
    the day has written for the midnight after it. Returns the number of keys with a newer online row."""
    differing, newer = _differing(store, spec, rows)
    if differing:
        table = rows.take(pa.array(differing)).to_pandas().drop(columns=[AT])
        overwriting.write_to_online_store(spec.name, table)
        wrong, more = _differing(store, spec, rows.take(pa.array(differing)))
        newer += more
        if wrong:
            key = rows[spec.key][differing[wrong[0]]].as_py()
            raise FeatureStoreError(
                f"the online store has other values of {spec.name} for {spec.key} {key!r} than were written: look whether another process "
                "writes them, and run the refresh again"
            )
    return newer


def _differing(store: FeatureStore, spec: TableSpec, rows: pa.RecordBatch) -> tuple[list[int], int]:
    """Positions of rows whose online values differ, and the number of those with a newer online row, which do not count."""
    wanted = [rows[name].to_pylist() for name in spec.features]
    differing, newer = [], 0
    found = online_rows(store, spec, rows[spec.key].to_pylist())
    for position, (at_us, row) in enumerate(zip(rows[AT].to_pylist(), found, strict=True)):
        if row.at_us > at_us:
            newer += 1
        elif row.at_us < at_us or not all(
            same_value(column[position], value) for column, value in zip(wanted, row.values, strict=True)
        ):
            differing.append(position)
    return differing, newer


def _latest(data_dir: Path, spec: TableSpec, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
    """The latest row of every key in ``[start, end)``, in batches, with its time in microseconds."""
    key = quoted(spec.key)
    columns = ", ".join([key, EVENT_TIMESTAMP, CREATED_TIMESTAMP, *map(quoted, spec.features)])
    with engine(data_dir) as connection:
        reader = connection.sql(f"""
            SELECT {columns}, epoch_us({EVENT_TIMESTAMP}) AS {AT} FROM {source(data_dir / f"{spec.name}.parquet")}
            WHERE {EVENT_TIMESTAMP} >= {literal(start.isoformat())}::TIMESTAMPTZ
              AND {EVENT_TIMESTAMP} < {literal(end.isoformat())}::TIMESTAMPTZ
            QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {EVENT_TIMESTAMP} DESC, {CREATED_TIMESTAMP} DESC) = 1
        """).fetch_arrow_reader(BATCH_KEYS)
        for batch in reader:
            yield batch.cast(_plain(batch.schema)) if batch.num_rows else batch


def _plain(schema: pa.Schema) -> pa.Schema:
    """Times in UTC, whatever zone DuckDB names."""
    return pa.schema(
        [
            pa.field(field.name, pa.timestamp("us", "UTC") if pa.types.is_timestamp(field.type) else field.type)
            for field in schema
        ]
    )
