"""One deployed model with a real feature store, and one real TorchServe that serves it, for all tests of this folder."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.deployment.deploy.deployment import deploy_model
from components.deployment.package.archive import write_archive
from serving.config import ServingConfig
from serving.features.open_reader import FeatureConfig
from serving.local.torchserve_process import TorchServe, running
from tests.serving.small import MODEL_VERSION, SCHEMA, bless, clean_log, make_bundle
from thinktwice.files import write_json
from thinktwice.release.bundle import bundle_hash
from thinktwice.release.champion import Champion, read_champion

Reply = tuple[int, dict[str, str], bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(url: str, body: Any, content_type: str = "application/json") -> Reply:
    """Status, headers (lower-case names) and body of the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder whose champion is the small model."""
    from feature_repo.store import build

    folder = tmp_path_factory.mktemp("deployed") / "price=7 [1] *?{a,b} it's 100%20 ü;#"  # a path is only characters
    folder.mkdir()
    make_bundle(folder)
    (folder / "clean").mkdir()
    clean_log().write_parquet(folder / "clean" / "clean.parquet")
    (folder / "clean" / "schema.yaml").write_text(SCHEMA.to_yaml())
    write_json(folder / "clean" / "clean.json", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Feast's and Ibis' own, about their own code
        build(folder / "clean", folder / "store", feature_version=MODEL_VERSION)
    blessing = bless(folder / "blessing", bundle_hash(folder / "bundle"))
    write_archive(folder / "bundle", blessing, folder / "archive")
    deploy_model(
        folder / "archive",
        folder / "bundle",
        folder / "store",
        blessing,
        target="local",
        state_dir=folder / "state",
        out_dir=folder / "deployment",
    )
    return folder / "state"


@pytest.fixture(scope="session")
def champion(state: Path) -> Champion:
    found = read_champion(state)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def server(champion: Champion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    with running(
        champion.archive,
        feature_store=champion.feature_store_dir,
        port=free_port(),
        log=tmp_path_factory.mktemp("server") / "log",
        # A busy machine must not turn a slow lookup into defaults.
        config=ServingConfig(features=FeatureConfig(timeout_ms=500)),
    ) as out:
        yield out
