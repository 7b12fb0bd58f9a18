"""Joins a prediction log to a later point-in-time retrieval of the same users and items, through Feast as in training."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from feature_repo.causes import causes
from feature_repo.counter_skew import training_counters
from feature_repo.retrieve import features_at
from feature_repo.store import read_info
from thinktwice.data.feature_tables import TableSpec, build_feature_tables, table_specs
from thinktwice.data.instant.definition import definition_of
from thinktwice.errors import DataError, FeatureStoreError
from thinktwice.monitor.served import read_served
from thinktwice.monitor.skew import FieldSkew, SkewReport, compare
from thinktwice.records.served import AT, ITEM, USER, VERSION
from thinktwice.release.feature_store import DATA, REGISTRY_FILE, SETTINGS_FILE
from thinktwice.schema import ROW_ID, SCHEMA_FILE, LogSchema, load_schema

IDS = {"user": USER, "item": ITEM}


def measure_skew(
    log: Path | str,
    store_dir: Path | str,
    most_rows: int = 20_000,
    *,
    clean_dir: Path | str | None = None,
    since: datetime | None = None,
) -> SkewReport:
    """Compare what was served with what the tables of a feature store say of the same moments.

    Args:
        log: folder of the prediction log.
        store_dir: feature store folder with its tables, of the served version or a later materialization.
        most_rows: rows compared at most, a fixed sample of whole requests.
        clean_dir: a later clean log of the same schema; tables are made from it and take the place of those of the store.
            Nothing is materialized. Served counters of instant statistics are compared with those of a training set of this log.
        since: compare only what was served at this instant or later.

    Raises:
        DataError: no log, no looked-up row with the fields of the store, or rows without the ids to look up.
        FeatureStoreError: no store, one that looks nothing up, or a clean log of other fields.
    """
    store_dir = Path(store_dir)
    info = read_info(store_dir)
    schema = load_schema(store_dir / SCHEMA_FILE)
    specs = table_specs(schema)
    if not specs:
        raise FeatureStoreError(
            f"feature store {store_dir} has no features to look up (its log has no users and items): there is no skew to measure"
        )
    fields = [(name, kind, spec.entity) for spec in specs for name, kind in spec.columns]
    served = read_served(log, most_rows, looked_up=True, since=since, columns=[name for name, _, _ in fields])
    if served.user_ids != "raw" and "user" in info.join_keys:
        raise DataError(
            f"the prediction log {log} contains user ids that are {served.user_ids}: skew needs them as they are, "
            "set prediction_log.user_ids to raw"
        )
    frame = served.frame
    columns: dict[str, pa.Array] = {
        ROW_ID: pa.array([f"{i:016x}" for i in range(frame.height)]),
        "event_time": frame[AT].to_arrow().cast(pa.timestamp("us", "UTC")),
    }
    for entity, key in info.join_keys.items():
        ids = frame[IDS[entity]]
        if ids.null_count():
            raise DataError(
                f"{ids.null_count()} rows of the prediction log have no {entity} id: log them, skew cannot be measured without"
            )
        columns[key] = ids.to_arrow().cast(pa.string())
    with _tables(store_dir, clean_dir, specs) as folder:
        later = pl.from_arrow(features_at(pa.table(columns), folder, info, specs))
        assert isinstance(later, pl.DataFrame)
        report, differing = compare(frame, later, fields)
        found = _with_causes(report, differing, frame, specs, folder / DATA)
    if clean_dir is not None:
        found = replace(found, fields=(*found.fields, *_counters(frame, schema, Path(clean_dir))))
    versions = dict(frame[VERSION].fill_null("unnamed").value_counts(sort=True).iter_rows())
    return replace(
        found,
        matching=served.matching,
        others=served.others,
        versions=versions,
        window=served.window,
    )


def _counters(frame: pl.DataFrame, schema: LogSchema, clean_dir: Path) -> tuple[FieldSkew, ...]:
    """Counters that the log has, against those of training; of the rows that are impressions of the clean log."""
    definition = definition_of(schema)
    kept = [] if definition is None else [c for c in definition.counters if c.name in frame.columns]
    if definition is None or not kept:
        return ()
    rows, later = training_counters(frame, [c.name for c in kept], clean_dir, definition)
    report, _ = compare(frame[rows], later, [(c.name, "number", c.side) for c in kept])
    return report.fields


@contextmanager
def _tables(store_dir: Path, clean_dir: Path | str | None, specs: tuple[TableSpec, ...]) -> Iterator[Path]:
    """The store itself, or a folder like it with tables made from a later clean log."""
    if clean_dir is None:
        yield store_dir
        return
    schema = load_schema(Path(clean_dir) / SCHEMA_FILE)
    if table_specs(schema) != specs:
        raise FeatureStoreError(
            f"the clean log {clean_dir} describes other fields than the feature store {store_dir}: give one of its schema"
        )
    with tempfile.TemporaryDirectory(prefix="thinktwice-skew-") as scratch:
        folder = Path(scratch)
        for name in (SETTINGS_FILE, REGISTRY_FILE):
            shutil.copyfile(store_dir / name, folder / name)
        build_feature_tables(clean_dir, folder / DATA, schema)
        yield folder


def _with_causes(
    report: SkewReport,
    differing: dict[str, np.ndarray],
    frame: pl.DataFrame,
    specs: tuple[TableSpec, ...],
    data_dir: Path,
) -> SkewReport:
    tables = {name: (spec, kind) for spec in specs for name, kind in spec.columns}
    fields = []
    for f in report.fields:
        rows = differing[f.name]
        if len(rows):
            spec, kind = tables[f.name]
            told = frame.select(
                pl.col(IDS[spec.entity]).alias("key"), pl.col(AT).alias("instant"), pl.col(f.name).alias("served")
            )[rows]
            f = replace(f, causes=causes(told, spec, f.name, kind, data_dir))
        fields.append(f)
    return replace(report, fields=tuple(fields))
