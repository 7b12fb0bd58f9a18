# ruff: noqa: S608 - names in queries come from the schema (letters, digits, _) and are quoted
"""Feature tables of a clean log: the features of each user and item, and the time from which they are valid.

Every table is a parquet file of change points: one row says that from ``event_timestamp`` on (until the next row of the
same key) the features of that key have these values. The tables and their columns follow from the schema alone
(:func:`table_specs`); the feature store is built from the same list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

import duckdb

from thinktwice.data.sequences import write_sequences
from thinktwice.data.statistics import DAY_US, write_statistics
from thinktwice.errors import DataError
from thinktwice.files import sha256_text
from thinktwice.parquet import num_rows
from thinktwice.progress import note, track
from thinktwice.query import engine, one_row, quoted, source, written
from thinktwice.schema import EVENT_TIME, ROW_ID, LogSchema
from thinktwice.schema.fields import VALID_FROM
from thinktwice.schema.limits import EARLIEST_US
from thinktwice.validate.side_tables import clean_table

CLEAN_FILE = "clean.parquet"
EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"

TableKind = Literal["attributes", "statistics", "sequences"]
ColumnKind = Literal["string", "number", "strings", "vector", "numbers"]


@dataclass(frozen=True)
class TableSpec:
    """One feature table: its key column and its feature columns with their kinds, in model order."""

    name: str
    kind: TableKind
    entity: Literal["user", "item"]
    key: str
    columns: tuple[tuple[str, ColumnKind], ...]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)


@dataclass(frozen=True)
class FeatureTables:
    """The feature tables written: the tables, their row counts, and the time range ``[start, end]`` of their rows.

    ``start`` may be before the log, where a side table has rows that were valid before it. ``end`` is the midnight (UTC) that closes the last day of the log: the moment at which every statistic of the log
    is final, and therefore the moment as of which an online store is filled.
    """

    specs: tuple[TableSpec, ...]
    rows: dict[str, int]
    start: datetime
    end: datetime


def feature_version(schema: LogSchema, snapshot_id: str, code_version: str) -> str:
    """Name of the features computed from this snapshot and schema by this code, e.g. ``ml-1m-3f2a9c01d4e7``.

    All models trained on them share the features, whatever the recipe, split or seed.
    """
    return f"{schema.name}-{sha256_text(snapshot_id, code_version, schema.to_yaml())[:12]}"


def feature_service_name(schema: LogSchema, feature_version: str) -> str:
    """``ctr_`` and the feature version with all characters but letters and digits replaced by ``_``.

    Empty when the log has no feature tables: requests then contain complete rows.
    """
    return service_name(feature_version) if table_specs(schema) else ""


def service_name(feature_version: str) -> str:
    """The feature service of a feature version that has tables, see :func:`feature_service_name`."""
    return "ctr_" + re.sub(r"[^0-9A-Za-z]", "_", feature_version)


def table_specs(schema: LogSchema) -> tuple[TableSpec, ...]:
    """The feature tables of a log with this schema; empty for a log without users and items."""
    specs: list[TableSpec] = []
    fields = schema.row_fields()
    column_kinds: dict[str, ColumnKind] = {
        "categorical": "string",
        "numeric": "number",
        "sequence": "strings",
        "vector": "vector",
        "weights": "numbers",
    }
    origins: tuple[tuple[TableKind, tuple[str, ...]], ...] = (
        ("attributes", ("attribute", "vector")),
        ("statistics", ("statistic",)),
        ("sequences", ("sequence",)),
    )
    entities: tuple[Literal["user", "item"], ...] = ("user", "item")
    for kind, feature_fields in origins:
        for entity in entities:
            key = schema.key_of(entity)
            columns = tuple(
                (f.name, column_kinds[f.kind]) for f in fields if f.entity == entity and f.origin in feature_fields
            )
            if key is not None and columns:
                specs.append(TableSpec(name=f"{entity}_{kind}", kind=kind, entity=entity, key=key, columns=columns))
    return tuple(specs)


def build_feature_tables(clean_dir: Path | str, out_dir: Path | str, schema: LogSchema) -> FeatureTables:
    """Write ``<out_dir>/<table>.parquet`` for every table of ``schema`` from ``<clean_dir>/clean.parquet``.

    Memory stays below about 2 GB whatever the size of the log. The output is the same, byte for byte in its values,
    for the same rows.

    Raises:
        DataError: the clean log is missing, unreadable or empty.
        ResourceError: no space left.
    """
    clean = Path(clean_dir) / CLEAN_FILE
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    specs = table_specs(schema)
    rows: dict[str, int] = {}
    with engine(out) as connection:
        start_us, end_us = _time_range(connection, clean)
        first_us = start_us
        for spec in track(specs, stage="materialize", total=len(specs), label="feature tables"):
            target = out / f"{spec.name}.parquet"
            if spec.kind == "attributes" and spec.entity in schema.side_tables:
                first = _write_side_table(connection, clean_table(clean.parent, spec.entity), spec, start_us, target)
                first_us = min(first_us, first)
            elif spec.kind == "attributes":
                _write_attributes(connection, clean, spec, target)
            elif spec.kind == "statistics":
                write_statistics(connection, clean, schema, spec.entity, end_us, target)
            else:
                write_sequences(connection, clean, schema, out / "item_attributes.parquet", target)
            rows[spec.name] = num_rows(target)
    note("materialize", f"{sum(rows.values()):,} change points in {len(rows)} tables")
    return FeatureTables(specs=specs, rows=rows, start=from_microseconds(first_us), end=from_microseconds(end_us))


def from_microseconds(microseconds: int) -> datetime:
    """An instant from microseconds since 1970, exact."""
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=microseconds)


def _time_range(connection: duckdb.DuckDBPyConnection, clean: Path) -> tuple[int, int]:
    """First instant of the log and the midnight after its last one, in microseconds."""
    if not clean.exists():
        raise DataError(f"clean log {clean} does not exist: run the validation step first")
    try:
        first, last = one_row(
            connection, f"SELECT min(epoch_us({EVENT_TIME})), max(epoch_us({EVENT_TIME})) FROM {source(clean)}"
        )
    except (duckdb.InvalidInputException, duckdb.BinderException, duckdb.IOException) as error:
        raise DataError(
            f"clean log {clean} cannot be read ({str(error).splitlines()[0]}): validate the log again"
        ) from error
    if first is None:
        raise DataError(
            f"clean log {clean} contains no rows: every row was quarantined or the source is empty, see the reasons in the quarantine"
        )
    return int(first), (int(last) // DAY_US + 1) * DAY_US


def _write_attributes(connection: duckdb.DuckDBPyConnection, clean: Path, spec: TableSpec, target: Path) -> None:
    """Write one row per change of an entity's attributes, valid from the impression that first carries them.

    Attributes are known at the time of the impression, so they are valid from that instant on. Two impressions of one
    entity at the same instant with different attributes: the higher ``row_id`` wins.
    """
    key = quoted(spec.key)
    columns = ", ".join(quoted(c) for c in spec.features)
    # Only a hash of the attributes goes through the sort; vectors would make it as large as the log.
    connection.execute(f"""
        COPY (
            WITH seen AS (
                SELECT {key} AS key, {EVENT_TIME} AS instant, max({ROW_ID}) AS {ROW_ID},
                       arg_max(hash({columns}), {ROW_ID}) AS content
                FROM {source(clean)} WHERE {key} IS NOT NULL GROUP BY ALL
            ),
            changed AS (
                SELECT {ROW_ID} FROM seen
                QUALIFY content IS DISTINCT FROM lag(content) OVER (PARTITION BY key ORDER BY instant)
                     OR row_number() OVER (PARTITION BY key ORDER BY instant) = 1
            )
            SELECT {key}, {EVENT_TIME} AS {EVENT_TIMESTAMP}, {EVENT_TIME} AS {CREATED_TIMESTAMP}, {columns}
            FROM {source(clean)} SEMI JOIN changed USING ({ROW_ID})
            ORDER BY {EVENT_TIMESTAMP}, {key}
        ) TO {written(target)} (FORMAT parquet, COMPRESSION zstd)
    """)


def _write_side_table(
    connection: duckdb.DuckDBPyConnection, table: Path, spec: TableSpec, start_us: int, target: Path
) -> int:
    """Write the rows of a clean side table. Rows that are valid at all times are valid from ``start_us``, the first instant of the
    log, on. Returns the first instant of a row in microseconds."""
    columns = ", ".join(quoted(c) for c in spec.features)
    always = f"{VALID_FROM} = make_timestamptz({EARLIEST_US})"
    timeless = one_row(connection, f"SELECT coalesce(bool_and({always}), true) FROM {source(table)}")[0]
    at = f"make_timestamptz({start_us})" if timeless else VALID_FROM
    connection.execute(f"""
        COPY (
            SELECT {quoted(spec.key)}, {at} AS {EVENT_TIMESTAMP}, {at} AS {CREATED_TIMESTAMP}, {columns}
            FROM {source(table)} ORDER BY {EVENT_TIMESTAMP}, {quoted(spec.key)}
        ) TO {written(target)} (FORMAT parquet, COMPRESSION zstd)
    """)
    first = one_row(connection, f"SELECT min(epoch_us({EVENT_TIMESTAMP})) FROM {source(target)}")[0]
    return start_us if first is None else int(first)
