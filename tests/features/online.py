"""What a predictor does: open the folder with Feast alone and read through the service named in its description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from feast import FeatureStore


def read(folder: Path, user: str, items: list[str]) -> dict[str, list[Any]]:
    """One user row and one row per item, as Feast answers them: feature -> values."""
    store = FeatureStore(repo_path=str(folder))
    try:
        return read_open(store, folder, user, items)
    finally:
        close(store)


def read_open(store: FeatureStore, folder: Path, user: str, items: list[str]) -> dict[str, list[Any]]:
    description = json.loads((folder / "feature_store.json").read_text())
    out: dict[str, list[Any]] = {}
    for entity, ids in (("user", [user]), ("item", items)):
        views = [v for v in description["views"] if v["entity"] == entity]
        features = [f"{v['name']}:{f}" for v in views for f in v["features"]]
        key = description["join_keys"][entity]
        out |= store.get_online_features(features=features, entity_rows=[{key: i} for i in ids]).to_dict()
    return out


def close(store: FeatureStore) -> None:
    connection = getattr(store._get_provider().online_store, "_conn", None)
    if connection is not None:
        connection.close()
