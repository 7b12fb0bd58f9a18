"""Training-serving skew: joins a prediction log to a later point-in-time retrieval of the same users and items, through Feast."""

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
from thinktwice.records.served import AT, COUNTERS, ITEM, USED, USER, VERSION
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
    """Compare served features with those in the tables of a feature store for the same instants.

    Args:
        log: folder of the prediction log.
        store_dir: feature store folder with its tables, of the served version or a later materialization.
        most_rows: maximum number of compared rows, a fixed sample of complete requests.
        clean_dir: a later clean log with the same schema; tables built from it replace those of the store. Nothing is materialized.
            Served counters of instant statistics are compared with those of a training set of this log.
        since: compare only rows served at this instant or later.

    Raises:
        DataError: there is no log, it has no looked-up rows with the fields of the store, or rows have no ids.
        FeatureStoreError: there is no store, it has no features to look up, or the clean log has other fields.
    """
    store_dir = Path(store_dir)
    info = read_info(store_dir)
    schema = load_schema(store_dir / SCHEMA_FILE)
    specs = table_specs(schema)
    if not specs:
        raise FeatureStoreError(
            f"feature store {store_dir} has no features to look up (its log has no users and items): there is no skew to measure, use `thinktwice drift`"
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
        if ids.null_count() and not (entity == "user" and schema.has_anonymous_users):
            raise DataError(
                f"{ids.null_count()} rows of the prediction log have no {entity} id: log them, skew cannot be measured without"
            )
        columns[key] = ids.to_arrow().cast(pa.string())
    with _tables(store_dir, clean_dir, specs) as folder:
        later = pl.from_arrow(features_at(pa.table(columns), folder, info, specs))
        assert isinstance(later, pl.DataFrame)
        report, differing = compare(frame, later, fields)
        skew_report = _with_causes(report, differing, frame, specs, folder / DATA)
    if clean_dir is not None:
        skew_report = replace(skew_report, fields=(*skew_report.fields, *_counters(frame, schema, Path(clean_dir))))
    versions = dict(frame[VERSION].fill_null("unnamed").value_counts(sort=True).iter_rows())
    return replace(
        skew_report,
        matching=served.matching,
        others=served.others,
        versions=versions,
        window=served.window,
    )


def _counters(frame: pl.DataFrame, schema: LogSchema, clean_dir: Path) -> tuple[FieldSkew, ...]:
    """Skew of the logged counters against those of training, for the rows that are impressions of the clean log and were scored
    with counters."""
    definition = definition_of(schema)
    logged_counters = [] if definition is None else [c for c in definition.counters if c.name in frame.columns]
    if definition is None or not logged_counters:
        return ()
    unknown = 0  # stale, late, or not read: the predictor used none, and says so with each answer
    if COUNTERS in frame.columns:
        used = frame.filter(pl.col(COUNTERS).fill_null(USED) == USED)
        frame, unknown = used, frame.height - used.height
    rows, later = training_counters(frame, [c.name for c in logged_counters], clean_dir, definition)
    report, _ = compare(frame[rows], later, [(c.name, "number", c.side) for c in logged_counters])
    return tuple(replace(f, defaulted=f.defaulted + unknown) for f in report.fields)


@contextmanager
def _tables(store_dir: Path, clean_dir: Path | str | None, specs: tuple[TableSpec, ...]) -> Iterator[Path]:
    """The store itself, or a copy with tables built from a later clean log."""
    if clean_dir is None:
        yield store_dir
        return
    schema = load_schema(Path(clean_dir) / SCHEMA_FILE)
    if table_specs(schema) != specs:
        raise FeatureStoreError(
            f"the clean log {clean_dir} describes other fields than the feature store {store_dir}: use one with its schema"
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
            differing_rows = frame.select(
                pl.col(IDS[spec.entity]).alias("key"), pl.col(AT).alias("instant"), pl.col(f.name).alias("served")
            )[rows]
            f = replace(f, causes=causes(differing_rows, spec, f.name, kind, data_dir))
        fields.append(f)
    return replace(report, fields=tuple(fields))
