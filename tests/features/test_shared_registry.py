"""Feature versions in the shared registry: a real PostgreSQL, Redis, and Feast as another consumer uses it."""

from __future__ import annotations

import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import yaml

from components.features.materialize.component import materialize
from feature_repo import shared_registry
from feature_repo.shared_registry import Published, publish, published
from feature_repo.store import FeatureStoreInfo, build, quiet
from tests.components.deployed import make_champion
from tests.features import online, postgres_server, redis_server
from tests.features.conftest import SCHEMA, make_rows, write_clean
from tests.storage.servers import free_ports
from thinktwice.cli import main
from thinktwice.errors import FeatureStoreError
from thinktwice.release.feature_store import REDIS_ADDRESS, REGISTRY_URL

pytestmark = [
    pytest.mark.server,
    # Feast's own, on import and in its calls of pandas and protobuf.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
VERSION = "small-1.0-ab12"
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "features.md").read_text(encoding="utf-8")
PLACE = "s3://thinktwice-models/features/small"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server.running() as url:
        yield url


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """An empty database of the test's own."""
    return postgres_server.database(server, re.sub(r"\W", "_", request.node.name).lower()[:60])


@dataclass(frozen=True)
class Built:
    folder: Path
    info: FeatureStoreInfo
    address: str


@pytest.fixture(scope="module")
def built(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("store")
    log = write_clean(folder / "clean", SCHEMA, make_rows(num_rows=80))
    with redis_server.running(folder) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv(REDIS_ADDRESS, address)
        info = build(log.folder, folder / "store", feature_version=VERSION, online="redis")
        yield Built(folder / "store", info, address)


@contextmanager
def consumer(url: str, project: str, address: str) -> Iterator[Any]:
    """Feast, with the settings that the page gives to other consumers."""
    from feast import FeatureStore, RepoConfig

    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for name, value in ((REGISTRY_URL, url), (REDIS_ADDRESS, address)):
        assert f"${{{name}}}" in block
        block = block.replace(f"${{{name}}}", value)
    store = FeatureStore(config=RepoConfig(**{**yaml.safe_load(block), "project": project}))
    try:
        yield store
    finally:
        store.registry._exit_handler()  # the thread that reads the registry again
        store.registry.write_engine.dispose()


def content(url: str) -> list[tuple[Any, ...]]:
    """Every object in the database but for projects, in which Feast writes the time of each call."""
    found = []
    with psycopg.connect(url) as connection:
        for table in ("entities", "data_sources", "feature_views", "feature_services"):
            found += connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        found += connection.execute("SELECT count(*) FROM feature_view_version_history").fetchall()
    return found


def test_another_consumer_finds_a_version_and_reads_what_the_predictor_reads(built: Built, url: str) -> None:
    before = {path: path.read_bytes() for path in built.folder.rglob("*") if path.is_file()}
    found = publish(built.folder, url, f"{PLACE}/")
    assert published(url) == [found]
    assert found == Published(
        built.info.project,
        VERSION,
        built.info.feature_service,
        "small-log",
        "redis",
        built.info.start,
        built.info.end,
        PLACE,
    )
    assert {path: path.read_bytes() for path in built.folder.rglob("*") if path.is_file()} == before

    with consumer(url, found.project, built.address) as store, quiet():
        service = store.get_feature_service(found.feature_service)
        rows = [{"user_id": "u2", "item_id": item} for item in ("i'1", "i'2", "nobody")]
        answer = store.get_online_features(features=service, entity_rows=rows).to_dict()
        views, sources = store.list_feature_views(), store.list_data_sources()
    own = online.read(built.folder, "u2", ["i'1", "i'2", "nobody"])
    assert {name: answer[name] for name in own if name.startswith("item_")} == {
        name: value for name, value in own.items() if name.startswith("item_")
    }
    assert answer["last_clicks"][0] == own["last_clicks"][0]
    paths = {source.path for source in sources}
    assert paths == {f"{PLACE}/data/{view.name}.parquet" for view in views} == {v.batch_source.path for v in views}
    assert all(view.tags["feature_version"] == VERSION and view.materialization_intervals for view in views)


def test_publishing_again_changes_nothing(built: Built, url: str) -> None:
    publish(built.folder, url, PLACE)
    first = content(url), published(url)
    publish(built.folder, url, PLACE)
    assert (content(url), published(url)) == first
    moved = publish(built.folder, url)  # another place: the same version, whose tables are elsewhere now
    assert moved and moved.location == str(built.folder.resolve()) and published(url) == [moved]


def test_an_interrupted_publication_is_not_listed_and_the_next_one_completes_it(
    built: Built, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast.infra.registry.sql import SqlRegistry

    with monkeypatch.context() as patch:
        patch.setattr(SqlRegistry, "apply_feature_service", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            publish(built.folder, url, PLACE)
    assert published(url) == []
    found = publish(built.folder, url, PLACE)
    assert published(url) == [found]


def test_several_publishers_of_an_empty_database(built: Built, url: str) -> None:
    """They create the tables at the same time as well."""
    start = threading.Barrier(4)
    failed: list[Exception] = []

    def run() -> None:
        start.wait()
        try:
            publish(built.folder, url, PLACE)
        except Exception as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    assert [each.project for each in published(url)] == [built.info.project]


def test_a_publisher_waits_for_another_one(built: Built, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so where it waits too long."""
    publish(built.folder, url, PLACE)
    monkeypatch.setattr(shared_registry, "LOCK_LIMIT_S", 1)
    with psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (shared_registry.LOCK,))
        with pytest.raises(FeatureStoreError, match="did not end within 1 s: publish again"):
            publish(built.folder, url, PLACE)
    assert publish(built.folder, url, PLACE)


def test_a_reader_lists_and_does_not_publish(built: Built, url: str) -> None:
    publish(built.folder, url, PLACE)
    name = url.rpartition("/")[2]
    role = f"reader_{name}"[:60]
    (grant,) = re.findall(r"^```sql\n(.*?);\n```", PAGE, re.MULTILINE)
    assert grant.endswith(" TO ranking")
    grant = grant.replace(" ranking", f" {role}")
    postgres_server.execute(url, f"CREATE ROLE {role} LOGIN PASSWORD 'reader-secret'", grant)
    reader = url.replace(f"owner:{postgres_server.PASSWORD}", f"{role}:reader-secret")
    assert published(reader) == published(url)
    with pytest.raises(FeatureStoreError, match=r"refuses .*may create and write") as caught:
        publish(built.folder, reader, "s3://elsewhere/x")
    assert "reader-secret" not in str(caught.value)


def test_what_is_not_a_registry_is_named_without_its_password(built: Built, server: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    secret = "hunter2hunter2"
    for url, words in (
        ("", f"set {REGISTRY_URL} to postgresql://"),
        ("not a url", "is not a database URL"),
        (f"sqlite:///{tmp_path}/registry.db", "is not a PostgreSQL database"),
        (f"mysql://u:{secret}@h/d", "is not a PostgreSQL database"),
        (f"postgresql://u:{secret}@h", "is not a PostgreSQL database"),
        (f"postgresql://u:{secret}@127.0.0.1:{port}/d", "cannot be used .*start it, or correct"),
        (server.replace(postgres_server.PASSWORD, secret), "cannot be used .*password authentication failed"),
        (server.replace("/postgres", "/absent") if server.endswith("/postgres") else server, "cannot be used"),
    ):
        for call in (lambda url=url: publish(built.folder, url), lambda url=url: published(url)):
            with pytest.raises(FeatureStoreError, match=words) as caught:
                call()
            assert secret not in str(caught.value) and postgres_server.PASSWORD not in str(caught.value)
            assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_empty_database_lists_nothing(url: str) -> None:
    assert published(url) == []


def test_the_step_publishes_where_a_registry_is_named(
    built: Built, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REGISTRY_URL, url)
    artifact = SimpleNamespace(path=str(tmp_path / "store"), uri="minio://mlpipeline/v2/named-1", metadata={})
    materialize.python_func(
        clean=SimpleNamespace(path=str(built.folder.parent / "clean")),
        feature_version="named-1",
        online_store="sqlite",
        redis_address="",
        code_version="test",
        feature_store=artifact,
        metrics=SimpleNamespace(log_metric=lambda *_: None),
    )
    assert [(p.feature_version, p.location) for p in published(url)] == [("named-1", "s3://mlpipeline/v2/named-1")]


def test_the_documented_commands(
    built: Built, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    assert [line.split()[1:3] for line in lines] == [
        ["features", "publish"], ["features", "list"], ["pipeline", "compile"], ["features", "refresh"],
    ]  # fmt: skip
    make_champion(tmp_path / ".thinktwice" / "state", built.folder)
    shutil.copytree(built.folder.parent / "clean", tmp_path / "clean")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(REGISTRY_URL, url)
    shown = []
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
        shown.append(capsys.readouterr().out)
    assert shown[0].strip() == built.info.feature_service
    assert shown[1].split()[0] == built.info.feature_service and "s3://thinktwice-models/features/ml-1m" in shown[1]
    assert f"{VERSION} is up to date from {built.info.start} to 2024-03-01T00:00:00+00:00" in shown[3]
    monkeypatch.delenv(REGISTRY_URL)
    assert main(["features", "list"]) == 1
    assert f"set {REGISTRY_URL} to postgresql://" in capsys.readouterr().err
