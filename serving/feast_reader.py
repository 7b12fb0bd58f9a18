"""Online features from Feast, through its Python SDK. The only file of this room that imports feast."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from serving.features import Features
from thinktwice.errors import FeatureStoreError
from thinktwice.imports import without_typeguard
from thinktwice.schema import LogSchema


def _import_feast() -> ModuleType:
    with without_typeguard():
        import feast
        import feast.errors
    return feast


def _online_settings(feast: ModuleType, folder: Path) -> Any:
    """The store's settings without its offline side, whose packages (ibis, for ``duckdb``) a predictor does not have."""
    import yaml

    settings = yaml.safe_load(os.path.expandvars((folder / "feature_store.yaml").read_text(encoding="utf-8")))
    settings.pop("offline_store", None)
    config = feast.RepoConfig(**settings)
    config.repo_path = folder
    return config


class FeastReader:
    """Two reads per request, never one: the user's views with one row, the item views with each candidate once.

    One read of both would look the user up once per candidate.

    Args:
        folder: feature store folder with ``feature_store.yaml``; all its paths are relative to it.
        service: name of the feature service the model was trained on.
        schema: tells which entity key is the user's and which the item's.

    Raises:
        FeatureStoreError: the folder is no feature store, or does not have the service.
    """

    def __init__(self, folder: Path | str, service: str, schema: LogSchema) -> None:
        folder = Path(folder)
        if not (folder / "feature_store.yaml").is_file():
            raise FeatureStoreError(
                f"{folder} is no feature store (no feature_store.yaml): run the materialize step, or correct the path"
            )
        feast = _import_feast()
        logging.getLogger("feast").setLevel(logging.WARNING)
        self._store = feast.FeatureStore(
            repo_path=str(folder.resolve()), config=_online_settings(feast, folder.resolve())
        )
        try:
            found = self._store.get_feature_service(service)
        except feast.errors.FeastObjectNotFoundException as error:
            known = ", ".join(sorted(s.name for s in self._store.list_feature_services())) or "none"
            raise FeatureStoreError(
                f"feature store {folder} has no feature service {service!r} (it has: {known}): "
                "materialize the features of this model version"
            ) from error
        self._keys = {"user": schema.key_of("user"), "item": schema.key_of("item")}
        self._references: dict[str, list[str]] = {"user": [], "item": []}
        self._names: dict[str, list[str]] = {"user": [], "item": []}
        for projection in found.feature_view_projections:
            view = self._store.get_feature_view(projection.name)
            keys = {column.name for column in view.entity_columns}
            side = "user" if self._keys["user"] in keys else "item"
            for feature in projection.features:
                self._references[side].append(f"{projection.name_to_use()}:{feature.name}")
                self._names[side].append(feature.name)

    def read(self, user_id: str | None, item_ids: Sequence[str]) -> Features:
        """See :class:`serving.features.OnlineFeatureReader`."""
        unique = list(dict.fromkeys(item_ids))
        users = self._rows("user", [user_id]) if user_id is not None else [{}]
        items = dict(zip(unique, self._rows("item", unique), strict=True))
        cold = frozenset(i for i, row in items.items() if self._references["item"] and _is_cold(row))
        cold_user = user_id is not None and bool(self._references["user"]) and _is_cold(users[0])
        return Features(users[0], items, cold_user, cold)

    def _rows(self, side: str, ids: Sequence[str | None]) -> list[dict[str, Any]]:
        references = self._references[side]
        if not references:
            return [{} for _ in ids]
        key = self._keys[side]
        try:
            columns = self._store.get_online_features(
                features=references, entity_rows=[{key: value} for value in ids]
            ).to_dict()
        except Exception as error:
            raise FeatureStoreError(f"the online store does not answer for {side} features ({error})") from error
        names = self._names[side]
        return [dict(zip(names, values, strict=True)) for values in zip(*(columns[n] for n in names), strict=True)]


def _is_cold(row: Mapping[str, Any]) -> bool:
    # By value, never by status: Redis calls a row that does not exist PRESENT.
    return all(value is None for value in row.values())
