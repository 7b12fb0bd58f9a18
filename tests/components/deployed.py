"""Inputs of the deployment steps."""

from __future__ import annotations

from pathlib import Path

from feature_repo.store import write_config
from tests.serving.small import FEATURE_SERVICE
from thinktwice.files import write_json


def make_store(folder: Path, service: str = FEATURE_SERVICE) -> Path:
    """A folder that looks like a feature store from outside."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "user_attributes.parquet").write_bytes(b"rows")
    write_config(folder, "x", "sqlite", "")
    (folder / "online.db").write_bytes(b"values")
    write_json(folder / "feature_store.json", {"feature_service": service})
    return folder
