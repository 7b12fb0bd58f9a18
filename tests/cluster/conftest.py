"""The API server of ours, once per file, and the overlays of ``manifests/``."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.api_process import ROOT, Api
from tests.cluster.objects_store import Json
from tests.cluster.served import api_server
from tests.manifests.conftest import rendered


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    shared = Path(os.environ.get("THINKTWICE_SHARED", ROOT.parent / "shared")) / "schemas"
    with api_server(tmp_path_factory.mktemp("kube"), shared if shared.is_dir() else None) as api:
        yield api


@pytest.fixture
def api(server: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(server.kubeconfig))
    server.control(reset=True)
    return server


@pytest.fixture(scope="session")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Json]]:
    """``overlay(name)``: all its objects."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: it renders the overlays")
    copied = tmp_path_factory.mktemp("manifests") / "manifests"
    shutil.copytree(ROOT / "manifests", copied)
    (copied / "overlays/experiment/envoy-image.env").write_text(
        "image=docker.io/envoyproxy/envoy@sha256:" + "0" * 64 + "\n"
    )

    def read(name: str) -> list[Json]:
        return [value for value in yaml.safe_load_all(rendered(copied / "overlays" / name)) if value]

    return read


def kubectl(*words: str) -> str:
    return subprocess.run(["kubectl", *words], capture_output=True, text=True, check=True, timeout=60).stdout
