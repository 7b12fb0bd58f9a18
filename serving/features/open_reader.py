"""Construction of the feature reader of a predictor from its settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from serving.features.guarded_source import GuardedSource
from serving.features.lookup import BoundedSource, DirectReader, Lookup, OnDefault, OnlineFeatureReader
from thinktwice.data.encoder import Encoder
from thinktwice.data.feature_tables import table_specs
from thinktwice.data.instant.definition import definition_of
from thinktwice.errors import FeatureStoreError
from thinktwice.frozen import Frozen
from thinktwice.parquet import open_parquet
from thinktwice.schema import LogSchema

DATA = "data"  # folder of the feature tables within a store
READ_BATCH, YIELD_S = 4096, 0.001  # ids per read, and a pause after it that releases the interpreter for requests


class FeatureConfig(Frozen):
    """Settings of the feature lookup."""

    # snapshot: all items in memory, the user per request. feast, redis: both per request, by the SDK or directly.
    reader: Literal["snapshot", "feast", "redis"] = "snapshot"
    timeout_ms: float = Field(default=50.0, gt=0, le=60_000)  # of one lookup; late values become defaults
    threads: int = Field(default=4, ge=1, le=64)  # concurrent lookups, including hanging ones
    refresh_seconds: float = Field(default=300.0, gt=0)  # between refills of the snapshot
    max_age_seconds: float | None = Field(
        default=None, gt=0
    )  # maximum age of a row, older ones are stale; None: no limit
    max_counter_age_seconds: float | None = Field(
        default=60.0, gt=0
    )  # from the store's watermark to a request, older counters are unknown; None: no limit


def open_reader(
    folder: Path | str,
    service: str,
    schema: LogSchema,
    encoder: Encoder,
    config: FeatureConfig,
    on_default: OnDefault | None = None,
    *,
    states: bool = False,
) -> OnlineFeatureReader:
    """Open the feature store in a folder.

    Args:
        folder: contains ``feature_store.yaml``; all paths in it are relative to the folder.
        service: feature service the model was trained on.
        schema, encoder: of the model.
        on_default: called for every lookup that was answered with defaults; without it such a lookup is an error.
        states: whether to read the states of the schema's counters with each request.

    Raises:
        FeatureStoreError: the store or the service does not exist, the setting needs another kind of store, or the states in
            the store are of another definition.
    """
    from serving.features.feast_source import FeastSource, check_definition, open_feast

    store, feature_service = open_feast(folder, service)
    if states:
        check_definition(store, schema, folder)
    is_redis = store.config.online_store.type == "redis"
    if config.reader == "redis" and not is_redis:
        raise FeatureStoreError(
            f"feature store {folder} keeps its online values in {store.config.online_store.type}, not in Redis: "
            "set features.reader to snapshot or feast"
        )
    source: BoundedSource
    if is_redis and config.reader != "feast":
        from serving.features.redis_source import RedisSource

        source = RedisSource(store, schema, states=states)
    else:
        timestamps = config.max_age_seconds is not None
        source = FeastSource(store, feature_service, schema, timestamps=timestamps, states=states)
    guarded = GuardedSource(source, timeout=config.timeout_ms / 1000, threads=config.threads)
    lookup = Lookup(guarded, config.max_age_seconds, on_default)
    item_key = schema.key_of("item")
    if config.reader != "snapshot" or item_key is None:
        return DirectReader(lookup, states=states)
    from serving.features.snapshot_reader import SnapshotReader

    return SnapshotReader(
        lookup,
        Lookup(source, config.max_age_seconds),
        _catalogue(Path(folder), schema, encoder),
        encoder,
        item_key,
        refresh=config.refresh_seconds,
        counters=definition_of(schema) if states else None,
    )


def _catalogue(folder: Path, schema: LogSchema, encoder: Encoder) -> Callable[[], Sequence[str]]:
    """Returns a function that lists all item ids: those in the store's tables, or those seen in training if there are no tables."""
    tables = [folder / DATA / f"{spec.name}.parquet" for spec in table_specs(schema) if spec.entity == "item"]
    key = schema.key_of("item") or ""

    def ids() -> Sequence[str]:
        existing = [table for table in tables if table.is_file()]
        if not existing:
            return encoder.values_of(key)
        unique: dict[str, None] = {}
        for table in existing:
            with open_parquet(table) as file:
                for batch in file.iter_batches(READ_BATCH, columns=[key]):
                    unique.update(dict.fromkeys(batch.column(0).unique().to_pylist()))
                    time.sleep(YIELD_S)
        return list(unique)

    return ids
