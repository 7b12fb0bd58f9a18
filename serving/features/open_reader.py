"""The reader a predictor uses, as its settings say."""

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
from thinktwice.errors import FeatureStoreError
from thinktwice.frozen import Frozen
from thinktwice.parquet import open_parquet
from thinktwice.schema import LogSchema

DATA = "data"  # folder of the feature tables within a store
READ_BATCH, YIELD_S = 4096, 0.001  # ids of one read, and a pause after it, so that requests get the interpreter


class FeatureConfig(Frozen):
    """How features are looked up."""

    # snapshot: all items in memory, the user per request. feast, redis: both per request, by the SDK or past it.
    reader: Literal["snapshot", "feast", "redis"] = "snapshot"
    timeout_ms: float = Field(default=50.0, gt=0, le=60_000)  # of one lookup; late values become defaults
    threads: int = Field(default=4, ge=1, le=64)  # lookups under way at once, hanging ones included
    refresh_seconds: float = Field(default=300.0, gt=0)  # between refills of the snapshot
    max_age_seconds: float | None = Field(default=None, gt=0)  # above which a row is called stale; None: never


def open_reader(
    folder: Path | str,
    service: str,
    schema: LogSchema,
    encoder: Encoder,
    config: FeatureConfig,
    on_default: OnDefault | None = None,
) -> OnlineFeatureReader:
    """Open the feature store in a folder.

    Args:
        folder: with ``feature_store.yaml``; all its paths are relative to it.
        service: feature service the model was trained on.
        schema, encoder: of the model.
        on_default: told of every lookup that was answered with defaults; without it such a lookup is an error.

    Raises:
        FeatureStoreError: no store, no such service, or not the store that the setting needs.
    """
    from serving.features.feast_source import FeastSource, open_feast

    store, found = open_feast(folder, service)
    is_redis = store.config.online_store.type == "redis"
    if config.reader == "redis" and not is_redis:
        raise FeatureStoreError(
            f"feature store {folder} keeps its online values in {store.config.online_store.type}, not in Redis: "
            "set features.reader to snapshot or feast"
        )
    source: BoundedSource
    if is_redis and config.reader != "feast":
        from serving.features.redis_source import RedisSource

        source = RedisSource(store, schema)
    else:
        source = FeastSource(store, found, schema, timestamps=config.max_age_seconds is not None)
    guarded = GuardedSource(source, timeout=config.timeout_ms / 1000, threads=config.threads)
    lookup = Lookup(guarded, config.max_age_seconds, on_default)
    item_key = schema.key_of("item")
    if config.reader != "snapshot" or item_key is None:
        return DirectReader(lookup)
    from serving.features.snapshot_reader import SnapshotReader

    return SnapshotReader(
        lookup,
        Lookup(source, config.max_age_seconds),
        _catalogue(Path(folder), schema, encoder),
        encoder,
        item_key,
        refresh=config.refresh_seconds,
    )


def _catalogue(folder: Path, schema: LogSchema, encoder: Encoder) -> Callable[[], Sequence[str]]:
    """Ids of all items: those of the store's own tables, or those that training saw where a store comes without tables."""
    tables = [folder / DATA / f"{spec.name}.parquet" for spec in table_specs(schema) if spec.entity == "item"]
    key = schema.key_of("item") or ""

    def ids() -> Sequence[str]:
        there = [table for table in tables if table.is_file()]
        if not there:
            return encoder.values_of(key)
        found: dict[str, None] = {}
        for table in there:
            with open_parquet(table) as file:
                for part in file.iter_batches(READ_BATCH, columns=[key]):
                    found.update(dict.fromkeys(part.column(0).unique().to_pylist()))
                    time.sleep(YIELD_S)
        return list(found)

    return ids
