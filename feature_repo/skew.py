"""Joins a prediction log to a later point-in-time retrieval of the same users and items, through Feast as in training."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from feature_repo.retrieve import features_at
from feature_repo.store import SCHEMA_FILE, read_info
from thinktwice.data.feature_tables import table_specs
from thinktwice.errors import DataError
from thinktwice.monitor.served import read_served
from thinktwice.monitor.skew import SkewReport, compare
from thinktwice.schema import ROW_ID, load_schema


def measure_skew(log: Path | str, store_dir: Path | str, most_rows: int = 20_000) -> SkewReport:
    """Compare what was served with what the tables of a feature store say of the same moments.

    Args:
        log: folder of the prediction log.
        store_dir: feature store folder with its tables, of the served version or a later materialization.
        most_rows: rows compared at most, a fixed sample.

    Raises:
        DataError: no log, or rows without the ids to look up.
        FeatureStoreError: no store, or one without tables.
    """
    store_dir = Path(store_dir)
    info = read_info(store_dir)
    schema = load_schema(store_dir / SCHEMA_FILE)
    specs = table_specs(schema)
    served = read_served(log, most_rows, looked_up=True)
    keys = {"user": "log_user_id", "item": "log_item_id"}
    columns: dict[str, pa.Array] = {
        ROW_ID: pa.array([f"{i:016x}" for i in range(served.height)]),
        "event_time": served["log_at"].to_arrow().cast(pa.timestamp("us", "UTC")),
    }
    for entity, key in info.join_keys.items():
        ids = served[keys[entity]]
        if ids.null_count():
            raise DataError(
                f"{ids.null_count()} rows of the prediction log have no {entity} id: log them, skew cannot be measured without"
            )
        columns[key] = ids.to_arrow().cast(pa.string())
    later = pl.from_arrow(features_at(pa.table(columns), store_dir, info, specs))
    assert isinstance(later, pl.DataFrame)
    fields = [(name, kind, spec.entity) for spec in specs for name, kind in spec.columns]
    return compare(served, later, fields, tuple(info.join_keys))
