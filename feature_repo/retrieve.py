"""Point-in-time training rows: all clean rows with the features that were valid at their instants.

The join is Feast's ``get_historical_features`` on its DuckDB store. Feast's join pairs a row with *every* earlier change point
of its user and item before it keeps the newest, which is quadratic in an entity's activity. So each chunk of rows gets a private
copy of the tables in which an entity is split into short segments of its timeline (:mod:`feature_repo.segments`); the result is
the same and the number of pairs is linear.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.leaks import assert_no_leak, side_rows
from feature_repo.segments import SEGMENT_ROWS, write_chunk
from feature_repo.store import FeatureStoreInfo, open_store, quiet, read_info
from feature_repo.tables_engine import feast_engine
from thinktwice.data.feature_tables import CLEAN_FILE, EVENT_TIMESTAMP, TableSpec, table_specs
from thinktwice.data.point_in_time import COLUMN_TYPES, clean_rows, with_columns
from thinktwice.errors import DataError, FeatureStoreError, RowsLostError
from thinktwice.progress import note, track
from thinktwice.query import engine
from thinktwice.release.feature_store import DATA, REGISTRY_FILE, SETTINGS_FILE
from thinktwice.schema import ROW_ID, LogSchema, load_schema

if TYPE_CHECKING:
    from feast import FeatureStore

CHUNK_ROWS = 100_000  # rows joined at a time; bounds memory


def training_set(clean_dir: Path | str, store_dir: Path | str) -> pa.Table:
    """The clean rows in their order, with every model field as known at the instant of the row.

    All columns of the clean log are kept, except that fields of users and items come from the feature store. A row whose user or
    item had no value yet gets nulls.

    Raises:
        RowsLostError: the join dropped, added or repeated a row.
        FeatureStoreError: the store was built for another schema, or a feature of it looks into the future.
        DataError: the clean log is missing or empty.
    """
    clean_dir, store_dir = Path(clean_dir), Path(store_dir)
    schema = load_schema(clean_dir / "schema.yaml")
    info = read_info(store_dir)
    specs = table_specs(schema)
    check_fits(info, specs, schema, store_dir)
    clean_path = clean_dir / CLEAN_FILE
    if not clean_path.is_file():
        raise DataError(f"clean log {clean_path} does not exist: run the validation step first")
    clean = clean_rows(clean_dir, schema)
    if not clean.num_rows:
        raise DataError(
            f"clean log {clean_path} contains no rows: every row was quarantined or the source is empty, see the reasons in the quarantine"
        )
    if not specs:
        return clean
    features = features_at(clean, store_dir, info, specs)
    table = with_columns(clean, features)
    assert_no_leak(table, clean, schema, side_rows(clean_dir, schema))
    note("build_training_set", f"{table.num_rows:,} rows with {features.num_columns} point-in-time features")
    return table


def features_at(rows: pa.Table, store_dir: Path, info: FeatureStoreInfo, specs: tuple[TableSpec, ...]) -> pa.Table:
    """The features of users and items as known at the instants of ``rows`` (row_id, event_time, join keys), in their
    order."""
    kinds = {name: COLUMN_TYPES[kind] for spec in specs for name, kind in spec.columns}
    chunks = _joined_chunks(rows, store_dir, info, specs)
    return pa.concat_tables(
        pa.table({name: chunk[name].cast(kind) for name, kind in kinds.items()}) for chunk in chunks
    )


def check_fits(info: FeatureStoreInfo, specs: tuple[TableSpec, ...], schema: LogSchema, store_dir: Path) -> None:
    """Raise a FeatureStoreError unless the store has exactly the tables and features of ``specs``."""
    expected = [(s.name, s.key, s.features) for s in specs]
    actual = [(v.name, v.join_key, v.features) for v in info.views]
    if expected != actual:
        raise FeatureStoreError(
            f"feature store {store_dir} was built for other fields than the schema {schema.name!r} describes: materialize again"
        )


def _joined_chunks(
    clean: pa.Table, store_dir: Path, info: FeatureStoreInfo, specs: tuple[TableSpec, ...]
) -> Iterator[pa.Table]:
    """Yield the joined rows chunk by chunk, each in the order of the clean rows."""
    keys = list(info.join_keys.values())
    rows = clean.select([ROW_ID, "event_time", *keys])
    starts = range(0, rows.num_rows, CHUNK_ROWS)
    with tempfile.TemporaryDirectory(prefix="thinktwice-join-") as name:
        workspace = Path(name)
        for file in (SETTINGS_FILE, REGISTRY_FILE):
            shutil.copy(store_dir / file, workspace / file)
        with open_store(workspace, online=False) as store, engine(workspace) as connection, quiet():
            for start in track(starts, stage="build_training_set", total=len(starts), label="point-in-time join"):
                chunk = rows.slice(start, CHUNK_ROWS)
                segmented = write_chunk(connection, chunk, specs, store_dir / DATA, workspace / DATA, SEGMENT_ROWS)
                with feast_engine(workspace):
                    joined = point_in_time(store, info.feature_service, segmented)
                yield in_order(chunk[ROW_ID], joined)


def point_in_time(store: FeatureStore, feature_service: str, rows: pa.Table) -> pa.Table:
    """Feast's historical features of ``rows`` (row_id, event_timestamp, join keys), in the order in which Feast returns them."""
    service = store.get_feature_service(feature_service)
    job = store.get_historical_features(entity_df=rows.to_pandas(), features=service, filter_by_created_timestamp=True)
    return job.to_arrow()


def in_order(row_ids: pa.ChunkedArray, joined: pa.Table) -> pa.Table:
    """The rows of ``joined`` in the order of ``row_ids``, after checking that they are the same rows.

    Raises:
        RowsLostError: a row is missing, new or repeated.
    """
    if joined.num_rows != len(row_ids):
        raise RowsLostError(
            f"the point-in-time join returned {joined.num_rows} of {len(row_ids)} rows: "
            "use the duckdb offline store (the file store keeps one row per user and instant)"
        )
    order = pc.index_in(row_ids, value_set=joined[ROW_ID])
    # If the counts are equal and none is missing, none is repeated, unless the clean rows themselves repeat one.
    missing = row_ids.filter(order.is_null())
    if len(missing):
        raise RowsLostError(
            f"the point-in-time join lost {len(missing)} rows, the first is row_id {missing[0].as_py()!r}"
        )
    if pc.count_distinct(order).as_py() != len(row_ids):
        raise RowsLostError(
            "the clean log repeats a row_id, so joined rows cannot be distinguished: ingest the source again"
        )
    return joined.take(order)


def entity_rows(chunk: pa.Table) -> pa.Table:
    """Rows (row_id, event_time, keys) as Feast's entity rows."""
    return chunk.rename_columns([EVENT_TIMESTAMP if c == "event_time" else c for c in chunk.column_names])
