"""A real S3 server on loopback, and a deployed model to put there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from components.deployment.deploy.deployment import deploy_model
from components.deployment.package.archive import write_archive
from tests.components.deployed import make_store
from tests.serving.small import bless
from thinktwice.release.bundle import bundle_hash


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a real S3 server on loopback."""
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the emptied server, and the environment that leads to it."""
    names = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    for bucket in client.list_buckets()["Buckets"]:
        for key in listed(client, bucket["Name"]):
            client.delete_object(Bucket=bucket["Name"], Key=key)
        client.delete_bucket(Bucket=bucket["Name"])
    client.create_bucket(Bucket="models")
    yield client
    client.close()


def listed(client: Any, bucket: str = "models") -> list[str]:
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


@pytest.fixture(scope="module")
def deployed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``state/champion`` and ``out/model`` as the deploy step leaves them."""
    folder = tmp_path_factory.mktemp("deployed")
    bless(folder / "blessing", bundle_hash(small / "bundle"))
    write_archive(small / "bundle", folder / "blessing", folder / "archive")
    deploy_model(
        folder / "archive",
        small / "bundle",
        make_store(folder / "store"),
        folder / "blessing",
        target="manifest",
        state_dir=folder / "state",
        out_dir=folder / "out",
    )
    return folder
