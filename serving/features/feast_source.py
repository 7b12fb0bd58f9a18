"""Online features from Feast through its Python SDK: the reference for all other sources, and the source of the item snapshot."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from serving.features.lookup import Entity, FeatureRow, Fetched, Places, States
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.pushed_views import DEFINITION_TAG, LOG_COLUMN, STATE, WATERMARK, instant_views
from thinktwice.errors import FeatureStoreError, reason
from thinktwice.imports import own_metrics, without_typeguard
from thinktwice.release.feature_store import FIX, REGISTRY_FILE, read_registry, read_settings
from thinktwice.schema import LogSchema

LOOK_AGAIN = 0.5  # seconds after which the watermark is read again
LOG_VIEW = "log_instant"


def _import_feast() -> ModuleType:
    with own_metrics(), without_typeguard():
        import feast
        import feast.errors
    return feast


def open_feast(folder: Path | str, service: str) -> tuple[Any, Any]:
    """The Feast store in a folder and its feature service of that name.

    Raises:
        FeatureStoreError: the folder is not a feature store, contains disallowed content, or does not have the service.
    """
    store = open_feast_store(folder)
    return store, _service(store, service, _import_feast(), Path(folder).resolve())


def open_feast_store(folder: Path | str) -> Any:
    """The Feast store in a folder.

    Feast rereads the registry when its file changes, so it gets a private copy of the validated registry.

    Raises:
        FeatureStoreError: the folder is not a feature store, or contains disallowed content.
    """
    folder = Path(folder).resolve()
    settings = read_settings(folder)
    feast = _import_feast()
    logging.getLogger("feast").setLevel(logging.WARNING)
    from feast.protos.feast.core.FeatureView_pb2 import FeatureView
    from feast.protos.feast.core.Registry_pb2 import Registry

    registry = read_registry(folder / REGISTRY_FILE, Registry, FeatureView)
    private = Path(tempfile.mkdtemp(prefix="thinktwice-registry-"))
    (private / REGISTRY_FILE).write_bytes(registry)
    try:
        arguments = settings.for_feast(offline=False)
        arguments["registry"]["path"] = str(private / REGISTRY_FILE)
        config = feast.RepoConfig(**arguments)
        config.repo_path = folder
        store = feast.FeatureStore(repo_path=str(folder), config=config)
    except Exception as error:
        shutil.rmtree(private, ignore_errors=True)
        raise FeatureStoreError(f"feature store {folder} cannot be opened ({reason(error)}): {FIX}") from error
    weakref.finalize(store, shutil.rmtree, private, ignore_errors=True)
    return store


def _service(store: Any, service: str, feast: ModuleType, folder: Path) -> Any:
    try:
        return store.get_feature_service(service)
    except feast.errors.FeastObjectNotFoundException as error:
        names = ", ".join(sorted(s.name for s in store.list_feature_services())) or "none"
        raise FeatureStoreError(
            f"feature store {folder} has no feature service {service!r} (it has: {names}): "
            "use the feature store that the model was trained on"
        ) from error
    except Exception as error:
        raise FeatureStoreError(f"feature store {folder} cannot be opened ({reason(error)}): {FIX}") from error


class FeastSource:
    """Reads through Feast's SDK. Users and items are fetched separately: one read of both would look up the user once per candidate.

    Args:
        store: an open Feast store.
        service: the feature service the model was trained on.
        schema: defines the entity keys of users and items.
        timestamps: whether rows include their newest timestamp, at a small cost.
        states: whether :meth:`fetch_request` is used.
    """

    def __init__(
        self, store: Any, service: Any, schema: LogSchema, *, timestamps: bool = False, states: bool = False
    ) -> None:
        self._store, self._log_name = store, schema.name
        self._timestamps = timestamps
        views = {view.kind: view for view in instant_views(schema)} if states else {}
        self._states: dict[Entity, str] = {
            entity: f"{views[entity].name}:{STATE}" for entity in ("user", "item") if entity in views
        }
        self._watermark: int | None = None
        self._watermark_read = -math.inf  # monotonic
        self._lock = threading.Lock()  # Feast keeps one SQLite connection
        self._keys: dict[Entity, str | None] = {"user": schema.key_of("user"), "item": schema.key_of("item")}
        self._references: dict[Entity, list[str]] = {"user": [], "item": []}
        self._names: dict[Entity, list[str]] = {"user": [], "item": []}
        for projection in service.feature_view_projections:
            try:
                view = store.get_feature_view(projection.name)
            except Exception as error:
                raise FeatureStoreError(
                    f"the feature store cannot return the view {projection.name!r} ({reason(error)}): {FIX}"
                ) from error
            keys = {column.name for column in view.entity_columns}
            entity: Entity = "user" if self._keys["user"] in keys else "item"
            for feature in projection.features:
                self._references[entity].append(f"{projection.name_to_use()}:{feature.name}")
                self._names[entity].append(feature.name)

    def names(self, entity: Entity) -> tuple[str, ...]:
        """See :class:`serving.features.lookup.FeatureSource`."""
        return tuple(self._names[entity])

    def fetch(self, entity: Entity, ids: Sequence[str], timeout: float | None = None) -> list[FeatureRow]:
        """See :class:`serving.features.lookup.FeatureSource`. The SDK has no time limit: ``timeout`` is ignored."""
        return self._rows(entity, ids, states=False)[0]

    def fetch_request(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        feature_ids: Sequence[str],
        timeout: float | None = None,
        places: Places | None = None,
    ) -> Fetched:
        """See :class:`serving.features.lookup.FeatureSource`. The SDK reads one entity at a time; it has no time limit."""
        now = time.monotonic()
        if now - self._watermark_read >= LOOK_AGAIN:
            (row,) = self.fetch_fields(LOG_COLUMN, [(LOG_VIEW, WATERMARK)], [self._log_name])
            self._watermark, self._watermark_read = (None if row[0] is None else int(row[0])), now
        users, user_states = self._both("user", [] if user_id is None else [user_id])
        if item_ids == feature_ids:
            items, item_states = self._both("item", item_ids)
        else:
            items, item_states = self.fetch("item", feature_ids), self._states_of("item", item_ids)
        user = users[0] if users else FeatureRow({})
        return Fetched(user, items, States(user_states[0] if user_states else None, item_states, self._watermark))

    def _both(self, entity: Entity, ids: Sequence[str]) -> tuple[list[FeatureRow], list[bytes | None]]:
        if STATE in self._names[entity]:  # a feature of this name: the SDK cannot return both at once
            return self.fetch(entity, ids), self._states_of(entity, ids)
        return self._rows(entity, ids, states=True)

    def _states_of(self, entity: Entity, ids: Sequence[str]) -> list[bytes | None]:
        view, key = self._states.get(entity, ""), self._keys[entity]
        if not view or key is None or not ids:
            return [None] * len(ids)
        return [row[0] for row in self.fetch_fields(key, [(view.partition(":")[0], STATE)], ids)]

    def _rows(self, entity: Entity, ids: Sequence[str], *, states: bool) -> tuple[list[FeatureRow], list[bytes | None]]:
        """Rows of ``ids``, and their states."""
        names, state = self._names[entity], self._states.get(entity) if states else None
        if not ids or not (names or state):
            return [FeatureRow({})] * len(ids), [None] * len(ids)
        key, wanted = self._keys[entity], self._references[entity] + ([state] if state else [])
        try:
            with self._lock:
                answer = self._store.get_online_features(features=wanted, entity_rows=[{key: value} for value in ids])
            columns = answer.to_dict(include_event_timestamps=self._timestamps)
        except Exception as error:
            raise FeatureStoreError(
                f"the online store does not answer for {entity} features ({error}): check that it runs"
            ) from error
        found = columns[STATE] if state else [None] * len(ids)
        if not names:
            return [FeatureRow({})] * len(ids), found
        rows = [dict(zip(names, values, strict=True)) for values in zip(*(columns[n] for n in names), strict=True)]
        if not self._timestamps:
            return [FeatureRow(row) for row in rows], found
        newest = [max(times) for times in zip(*(columns[f"{n}__ts"] for n in names), strict=True)]
        # A row that does not exist has the timestamp 0.
        return [
            FeatureRow(row, float(at)) if at else FeatureRow(row) for row, at in zip(rows, newest, strict=True)
        ], found

    def fetch_within(self, entity: Entity, ids: Sequence[str], timeout: float) -> None:
        """See :class:`serving.features.lookup.BoundedSource`; the SDK has no time limit."""
        return

    def fetch_request_within(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        feature_ids: Sequence[str],
        timeout: float,
        places: Places | None = None,
    ) -> None:
        """See :class:`serving.features.lookup.BoundedSource`; the SDK has no time limit."""
        return

    def fetch_fields_within(
        self, key: str, fields: Sequence[tuple[str, str]], ids: Sequence[str], timeout: float
    ) -> None:
        """See :class:`serving.features.lookup.BoundedSource`; the SDK has no time limit."""
        return

    def fetch_fields(
        self, key: str, fields: Sequence[tuple[str, str]], ids: Sequence[str], timeout: float | None = None
    ) -> list[list[Any]]:
        """See :class:`serving.features.lookup.FeatureSource`."""
        try:
            with self._lock:
                answer = self._store.get_online_features(
                    features=[f"{view}:{name}" for view, name in fields], entity_rows=[{key: value} for value in ids]
                )
            columns = answer.to_dict()
        except Exception as error:
            raise FeatureStoreError(
                f"the online store does not answer for {fields[0][0]} ({error}): check that it runs"
            ) from error
        return [list(values) for values in zip(*(columns[name] for _, name in fields), strict=True)]

    def close(self) -> None:
        """Close the SQLite file, which Feast never closes."""
        close_feast_store(self._store)


def check_definition(store: Any, schema: LogSchema, folder: Path | str) -> None:
    """Check that the states in a store are of the definition of a schema.

    Raises:
        FeatureStoreError: a view is missing, or was made for another definition; it names the view.
    """
    definition = definition_of(schema)
    assert definition is not None
    for view in instant_views(schema):
        tags = feature_view(store, view.name, folder).tags
        if tags.get(DEFINITION_TAG) != definition.hash:
            raise FeatureStoreError(
                f"the view {view.name} of the feature store {folder} was made for the definition "
                f"{tags.get(DEFINITION_TAG)}, and the schema {schema.name} defines {definition.hash}: materialize the "
                "features with this schema and version"
            )


def feature_view(store: Any, name: str, folder: Path | str) -> Any:
    """A view of a store; raises FeatureStoreError if it does not have it."""
    try:
        return store.get_feature_view(name)
    except Exception as error:
        raise FeatureStoreError(
            f"the feature store {folder} has no view {name!r}: materialize the features again"
        ) from error


def close_feast_store(store: Any) -> None:
    """Close the SQLite file, which Feast never closes."""
    online = getattr(store._get_provider(), "online_store", None)
    connection = getattr(online, "_conn", None)
    if online is not None and connection is not None:
        connection.close()
        online._conn = None
