# ruff: noqa: S608 - names in queries come from the schema (letters, digits, _) and are quoted
"""Readback check: reads a sample through the online path and compares it with the source tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from thinktwice.data.feature_tables import EVENT_TIMESTAMP, TableSpec
from thinktwice.errors import FeatureStoreError
from thinktwice.query import engine, literal, quoted, source

if TYPE_CHECKING:
    from feast import FeatureStore

SAMPLE_KEYS = 50  # per view: the newest, the oldest and a sample by hash


class OnlineRow(NamedTuple):
    """The features of one key in the online store, valid from ``at_us`` (microseconds since 1970; 0 if there is no row) on."""

    at_us: int
    values: tuple[Any, ...]


def online_rows(store: FeatureStore, spec: TableSpec, keys: Sequence[str]) -> list[OnlineRow]:
    """The rows of ``keys`` in the online store, in their order."""
    answer = store.get_online_features(
        features=[f"{spec.name}:{feature}" for feature in spec.features],
        entity_rows=[{spec.key: key} for key in keys],
    )
    names = list(answer.proto.metadata.feature_names.val)
    times = answer.proto.results[names.index(spec.features[0])].event_timestamps
    values = answer.to_dict()
    columns = [values[feature] for feature in spec.features]
    return [
        OnlineRow(time.seconds * 1_000_000 + time.nanos // 1_000, row)
        for time, row in zip(times, zip(*columns, strict=True), strict=True)
    ]


def compare_online(
    store: FeatureStore, spec: TableSpec, data_dir: Path, end: datetime, *, refreshed: bool = False
) -> int:
    """Compare the online values of a sample of keys with the latest row of each in the table as of ``end``.

    A key whose online row is newer than the table's was written since, by the feedback service or a refresh, and is left out.

    Args:
        refreshed: the rows may have been refreshed from a later log, which replaces rows of the midnight ``end`` if this log ended before it.

    Returns the number of values compared.

    Raises:
        FeatureStoreError: a value differs; the message names view, key, feature and both values.
    """
    expected = _latest_rows(spec, data_dir, end)
    end_us = (end - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)
    found = online_rows(store, spec, [row[0] for row in expected])
    compared = 0
    for (key, at_us, *values), row in zip(expected, found, strict=True):
        if row.at_us > at_us:
            continue
        for feature, value, actual in zip(spec.features, values, row.values, strict=True):
            if not same_value(value, actual):
                if refreshed and row.at_us == at_us == end_us:
                    continue
                raise FeatureStoreError(
                    f"online store answers {actual!r} for {feature} of {spec.key} {key!r}, the table {spec.name} contains "
                    f"{value!r} as of {end.isoformat()}: materialize again into an empty online store"
                )
        compared += len(values)
    return compared


def same_value(expected: Any, got: Any) -> bool:
    """Equality with missing values; an empty list comes back from some online stores as null."""
    if expected is None or (isinstance(expected, float) and math.isnan(expected)):
        return got is None or (isinstance(got, float) and math.isnan(got)) or got == []
    if isinstance(expected, list):
        return list(got or []) == expected
    return bool(expected == got)


def _latest_rows(spec: TableSpec, data_dir: Path, end: datetime) -> list[tuple[Any, ...]]:
    """Rows (key, microseconds since 1970, features...) of the sampled keys as of ``end``."""
    key = quoted(spec.key)
    columns = ", ".join(quoted(f) for f in spec.features)
    table = source(data_dir / f"{spec.name}.parquet")
    with engine(data_dir) as connection:
        return connection.sql(f"""
            WITH latest AS (
                SELECT {key} AS key, max({EVENT_TIMESTAMP}) AS latest_at FROM {table}
                WHERE {EVENT_TIMESTAMP} <= {literal(end.isoformat())}::TIMESTAMPTZ GROUP BY ALL
            ),
            picked AS (
                (SELECT * FROM latest ORDER BY hash(key) LIMIT {SAMPLE_KEYS})
                UNION (SELECT * FROM latest ORDER BY latest_at DESC, key LIMIT 5)
                UNION (SELECT * FROM latest ORDER BY latest_at, key LIMIT 5)
            )
            SELECT {key}, epoch_us(t.{EVENT_TIMESTAMP}), {columns}
            FROM {table} t JOIN picked p ON t.{key} = p.key AND t.{EVENT_TIMESTAMP} = p.latest_at
            ORDER BY 1
        """).fetchall()
