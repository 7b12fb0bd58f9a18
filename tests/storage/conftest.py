"""Object stores as processes, one of each kind for all tests of this folder, and a bucket of its own for every test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.faults import Proxy, proxy
from tests.storage.servers import SERVERS, Bucket, environment
from thinktwice.storage import s3

_numbers = itertools.count(1)


@pytest.fixture(scope="session", params=sorted(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Kind and address of an S3 server, one of each kind."""
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as address:
        yield request.param, address


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow each other at once."""
    monkeypatch.setattr(s3, "LONGEST_PAUSE_S", 0.0)


def _use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name, value in environment(address).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(server: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket, and the environment that leads to it."""
    kind, address = server
    _use(monkeypatch, address)
    return Bucket(address, f"models-{next(_numbers)}", kind)


@pytest.fixture
def faulty(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The environment leads to the bucket through a proxy that can be told to fail."""
    with proxy(bucket.address) as started:
        _use(monkeypatch, started.address)
        yield started


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small file."""
    path = tmp_path / "source"
    path.write_bytes(b"content")
    return path
