"""Inputs of the deployment steps."""

from __future__ import annotations

import shutil
from pathlib import Path

from feature_repo.store import write_config
from tests.serving.small import FEATURE_SERVICE
from thinktwice.files import write_json
from thinktwice.release.champion import CHAMPION_FILE
from thinktwice.release.feature_store import FEATURE_STORE


def make_store(folder: Path, service: str = FEATURE_SERVICE) -> Path:
    """A folder that looks like a feature store from outside."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "user_attributes.parquet").write_bytes(b"rows")
    write_config(folder, "x", "sqlite", "")
    (folder / "online.db").write_bytes(b"values")
    write_json(folder / "feature_store.json", {"feature_service": service})
    return folder


def make_champion(state: Path, store: Path) -> Path:
    """As much of a champion as is read for its features: its description, and a copy of a feature store. Returns that copy."""
    folder = state / "champion"
    shutil.copytree(store, folder / FEATURE_STORE)
    description = {"model_version": "m-1", "bundle_hash": "0" * 64, "feature_service": "ctr_m_1", "deployed_at": 1.7e9}
    write_json(folder / CHAMPION_FILE, description)
    return folder / FEATURE_STORE
