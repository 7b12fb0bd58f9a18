"""Rendered manifests, each overlay once."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.components.object_store import deployed, server, store
from tests.serving.small import small

__all__ = ["deployed", "server", "small", "store"]  # fixtures of the model store

ROOT = Path(__file__).resolve().parents[2]
Resources = dict[str, dict[str, Any]]


@cache
def rendered(folder: Path) -> str:
    """What kustomize makes of a folder that does not change."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns: " + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def render() -> Callable[[str], Resources]:
    """``render(overlay)``: its resources by kind; every kind occurs once in our overlays."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: it renders the overlays")

    def by_kind(overlay: str) -> Resources:
        resources = list(yaml.safe_load_all(rendered(ROOT / "manifests" / "overlays" / overlay)))
        kinds = {resource["kind"]: resource for resource in resources}
        assert len(kinds) == len(resources)
        return kinds

    return by_kind


@pytest.fixture(scope="session")
def crds(shared: Path) -> Path:
    """Folder with the schemas of the custom resources."""
    return shared / "schemas"
