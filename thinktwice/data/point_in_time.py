# ruff: noqa: S608 - names in queries come from the schema (letters, digits, _) and are quoted
"""Point-in-time features from the feature tables of a clean log, without a feature store.

The result equals Feast's join over the same tables (a test compares the two), but needs only the tables.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa

from thinktwice.data.feature_tables import (
    CLEAN_FILE,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    TableSpec,
    build_feature_tables,
    table_specs,
)
from thinktwice.errors import DataError, RowsLostError
from thinktwice.parquet import read_table
from thinktwice.query import engine, quoted, source
from thinktwice.schema import EVENT_TIME, LogSchema
from thinktwice.validate.layout import clean_table_columns
from thinktwice.validate.parse import TITLE
from thinktwice.validate.side_tables import read_clean

#: Types of feature columns, by their kind.
COLUMN_TYPES = {
    "string": pa.string(),
    "number": pa.float64(),
    "strings": pa.list_(pa.string()),
    "vector": pa.list_(pa.float32()),
    "numbers": pa.list_(pa.float64()),
}
_PLACE, _AT = "!place", "!at"  # no field can have such a name


def training_rows(clean_dir: Path | str, schema: LogSchema) -> pa.Table:
    """The rows of a clean log in their order; fields of users and items are replaced by their values at the row's instant.

    Raises:
        DataError: the clean log is missing, unreadable or empty.
        RowsLostError: the join dropped or repeated a row.
    """
    clean_path = Path(clean_dir) / CLEAN_FILE
    if not clean_path.is_file():
        raise DataError(f"clean log {clean_path} does not exist: validate the log first")
    clean = clean_rows(Path(clean_dir), schema)
    if not clean.num_rows:
        raise DataError(f"clean log {clean_path} has no rows: every row was quarantined, see its quarantine")
    specs = table_specs(schema)
    if not specs:
        return clean
    with tempfile.TemporaryDirectory(prefix="thinktwice-features-") as scratch:
        build_feature_tables(clean_dir, scratch, schema)
        return with_columns(clean, features_at(clean, Path(scratch), specs))


def clean_rows(clean_dir: Path, schema: LogSchema) -> pa.Table:
    """The clean log, with the titles of items and the fields of sequences also where a side table has them."""
    clean = read_table(clean_dir / CLEAN_FILE)
    wanted = [name for name in ({s.of for s in schema.computed_sequences} | {TITLE}) if name not in clean.column_names]
    from_table = [name for name in sorted(wanted) if "item" in schema.side_tables]
    from_table = [name for name in from_table if name in clean_table_columns(schema, "item")]
    return with_columns(clean, read_clean(clean_dir, schema, from_table).to_arrow()) if from_table else clean


def features_at(rows: pa.Table, tables_dir: Path, specs: tuple[TableSpec, ...]) -> pa.Table:
    """The features of the users and items of R rows as known at the rows' instants.

    Args:
        rows: [R] with ``event_time`` and the key columns of ``specs``; a null key has null features.
        tables_dir: folder of the feature tables.

    Returns:
        [R] the columns of all ``specs``, in the order of ``rows``.

    Raises:
        RowsLostError: the join dropped or repeated a row.
    """
    keys = list(dict.fromkeys(spec.key for spec in specs))
    lookups = rows.select([EVENT_TIME, *keys]).append_column(_PLACE, pa.array(range(rows.num_rows), pa.int64()))
    out: dict[str, pa.ChunkedArray] = {}
    with engine(tables_dir) as connection:
        connection.register("lookups", lookups)
        for spec in specs:
            key = quoted(spec.key)
            columns = ", ".join(f"t.{quoted(name)}" for name in spec.features)
            # A value is known from the later of its two timestamps on. One that becomes known only after a newer one is
            # never returned.
            joined = connection.sql(f"""
                WITH known AS (
                    SELECT *, greatest({EVENT_TIMESTAMP}, {CREATED_TIMESTAMP}) AS {quoted(_AT)}
                    FROM {source(tables_dir / f"{spec.name}.parquet")}
                    QUALIFY ({quoted(_AT)} < min({quoted(_AT)}) OVER (
                        PARTITION BY {key} ORDER BY {EVENT_TIMESTAMP} ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
                    )) IS NOT FALSE
                )
                SELECT a.{quoted(_PLACE)}, {columns}
                FROM lookups a ASOF LEFT JOIN known t ON a.{key} = t.{key} AND a.{EVENT_TIME} >= t.{quoted(_AT)}
                ORDER BY 1
            """).to_arrow_table()
            if joined[_PLACE].to_pylist() != list(range(rows.num_rows)):
                raise RowsLostError(
                    f"the join with {spec.name} returned {joined.num_rows} of {rows.num_rows} rows: run it again"
                )
            out |= {name: joined[name].cast(COLUMN_TYPES[kind]) for name, kind in spec.columns}
    return pa.table(out)


def with_columns(table: pa.Table, columns: pa.Table) -> pa.Table:
    """``table`` with the columns of ``columns`` [the same rows], which replace columns of the same name."""
    for name in columns.column_names:
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, columns[name])
        else:
            table = table.append_column(name, columns[name])
    return table
