# ruff: noqa: S608 - names in queries come from the schema (letters, digits, _) and are quoted
"""Readback check: reads a sample through the online path and compares it with the source tables."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktwice.data.feature_tables import EVENT_TIMESTAMP, TableSpec
from thinktwice.errors import FeatureStoreError
from thinktwice.query import engine, literal, quoted, source

if TYPE_CHECKING:
    from feast import FeatureStore

SAMPLE_KEYS = 50  # per view: the newest, the oldest and a sample by hash


def compare_online(store: FeatureStore, spec: TableSpec, data_dir: Path, end: datetime) -> int:
    """Compare the online values of a sample of keys with the latest row of each in the table as of ``end``.

    Returns the number of values compared.

    Raises:
        FeatureStoreError: a value differs; the message names view, key, feature and both values.
    """
    expected = _latest_rows(spec, data_dir, end)
    answer = store.get_online_features(
        features=[f"{spec.name}:{feature}" for feature in spec.features],
        entity_rows=[{spec.key: row[0]} for row in expected],
    ).to_dict()
    for index, row in enumerate(expected):
        for feature, value in zip(spec.features, row[1:], strict=True):
            actual = answer[feature][index]
            if not same_value(value, actual):
                raise FeatureStoreError(
                    f"online store answers {actual!r} for {feature} of {spec.key} {row[0]!r}, the table {spec.name} contains "
                    f"{value!r} as of {end.isoformat()}: materialize again into an empty online store"
                )
    return len(expected) * len(spec.features)


def same_value(expected: Any, got: Any) -> bool:
    """Equality with missing values; an empty list comes back from some online stores as null."""
    if expected is None or (isinstance(expected, float) and math.isnan(expected)):
        return got is None or (isinstance(got, float) and math.isnan(got)) or got == []
    if isinstance(expected, list):
        return list(got or []) == expected
    return bool(expected == got)


def _latest_rows(spec: TableSpec, data_dir: Path, end: datetime) -> list[tuple[Any, ...]]:
    """Rows (key, features...) of the sampled keys as of ``end``."""
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
            SELECT {key}, {columns} FROM {table} t JOIN picked p ON t.{key} = p.key AND t.{EVENT_TIMESTAMP} = p.latest_at
            ORDER BY 1
        """).fetchall()
