"""Writer of the online store through Feast: push sources name the views, the online store writes them in batches.

A row replaces the previous one. Its timestamp is the stamp of the record that changed it last. A row that is written twice, or after a
newer one, changes nothing in a store that keeps the newer row; in other stores the newer row is written again after it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from serving.features.feast_source import check_definition, close_feast_store, feature_view, open_feast_store
from serving.feedback.book import Row
from serving.feedback.whole_days import pushed_tables
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.pushed_views import STATE, WATERMARK, instant_views, push_source_name
from thinktwice.errors import FeatureStoreError, reason
from thinktwice.release.feature_store import ONLINE_FILE
from thinktwice.schema import SCHEMA_FILE, LogSchema, load_schema

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class OnlineStore:
    """Writer of the online store of a feature store folder. For use by one thread.

    Attributes:
        schema: of the store.
        project: Feast's name of the store.
        identity: of the rows: the project and, for SQLite, the file. A copy of a store has rows of its own.

    Raises:
        FeatureStoreError: there is no store, it has no instant statistics, or its views have another definition.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        self._store = open_feast_store(folder)
        self.schema: LogSchema = load_schema(folder / SCHEMA_FILE)
        self.project = self.identity = str(self._store.project)
        if self._store.config.online_store.type == "sqlite":
            self.identity += f" {(folder / ONLINE_FILE).resolve()}"
        definition = definition_of(self.schema)
        if definition is None:
            raise FeatureStoreError(
                f"the log of the feature store {folder} has no statistics.instant: there are no counters to update: add "
                "'instant' to the statistics of its schema and train again, or record events for outcomes alone with --record-only"
            )
        # Prepared once, because they are used for every row.
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import StringList, Value

        self._key_type, self._value, self._strings = EntityKey, Value, StringList
        self._views: dict[str, tuple[Any, str]] = {}  # kind of row -> (view, key column)
        for view in instant_views(self.schema):
            self._views[view.kind] = (self._view(view.name, folder), view.key)
        check_definition(self._store, self.schema, folder)
        if self._store.config.online_store.type == "sqlite":
            _let_read(folder / ONLINE_FILE)
        self._sequences = tuple(s.name for s in self.schema.computed_sequences)
        for spec in pushed_tables(self.schema):
            self._views[spec.name] = (self._view(spec.name, folder), spec.key)

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows. If an error is raised, some may have been written; writing them again is harmless.

        Raises:
            FeatureStoreError: the online store does not accept them.
        """
        by_kind: dict[str, list[Any]] = {}
        for row in rows:
            _, key = self._views[row.kind]
            by_kind.setdefault(row.kind, []).append(self._row(key, row.key, self._values(row), row.stamp))
        for kind, data in by_kind.items():
            self._write(kind, data)

    def write_watermark(self, state: bytes, watermark: int, stamp: int) -> None:
        """Publish that all outcomes known before ``watermark`` (microseconds) have been written.

        Raises:
            FeatureStoreError: the online store does not accept it.
        """
        values = {STATE: self._value(bytes_val=state), WATERMARK: self._value(int64_val=watermark)}
        self._write("log", [self._row(self._views["log"][1], self.schema.name, values, stamp)])

    def close(self) -> None:
        """Close connections."""
        close_feast_store(self._store)

    def _write(self, kind: str, data: list[Any]) -> None:
        view, _ = self._views[kind]
        try:
            self._store._get_provider().online_write_batch(self._store.config, view, data, None)
        except Exception as error:  # whatever the online store's client raises
            raise FeatureStoreError(
                f"the online store does not take {view.name} ({reason(error)}): check that it runs"
            ) from error

    def _row(self, key: str, value: str, values: dict[str, Any], stamp: int) -> Any:
        entity = self._key_type(join_keys=[key], entity_values=[self._value(string_val=value)])
        at = _EPOCH + timedelta(microseconds=stamp)
        return entity, values, at, at

    def _values(self, row: Row) -> dict[str, Any]:
        if row.kind in ("user", "item", "recent"):
            return {STATE: self._value(bytes_val=row.content)}
        content = json.loads(row.content)
        if row.kind == "user_sequences":
            lists = {name: [value for _, value in content.get(name, [])] for name in self._sequences}
            return {name: self._value(string_list_val=self._strings(val=values)) for name, values in lists.items()}
        return {name: self._value(double_val=value) for name, value in content.items()}

    def _view(self, name: str, folder: Path) -> Any:
        view = feature_view(self._store, name, folder)
        source = view.stream_source
        if source is None or source.name != push_source_name(name):
            raise FeatureStoreError(
                f"the view {name!r} of the feature store {folder} has no push source: materialize the features again"
            )
        return view


def _let_read(path: Path) -> None:
    """Enable reading a SQLite store while it is written. The mode is stored in the file."""
    try:
        db = sqlite3.connect(path)
        try:
            db.execute("PRAGMA journal_mode = WAL")
        finally:
            db.close()
    except sqlite3.Error as error:
        raise FeatureStoreError(
            f"the online store {path} cannot be written ({error}): make its folder writable for this user"
        ) from error
