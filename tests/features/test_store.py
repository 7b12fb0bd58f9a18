"""The feature store folder: what is in it, that it can be moved, and what it answers online. SQLite and a real Redis."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis
import yaml

from feature_repo import store as store_module
from feature_repo.readback import compare_online
from feature_repo.store import FeatureStoreInfo, build, ensure_online, open_store, parse_time, quiet, read_info
from serving.features.feast_source import FeastSource, open_feast
from tests.features import online, redis_server
from tests.features.conftest import SCHEMA, CleanLog, Row, make_rows
from thinktwice.data.feature_tables import TableSpec, table_specs
from thinktwice.errors import FeatureStoreError
from thinktwice.release.feature_store import REDIS_ADDRESS
from thinktwice.schema import LogSchema

pytestmark = [
    # Feast's own, on import and in its calls of pandas and protobuf.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
VERSION = "small-1.0-ab12"


@dataclass(frozen=True)
class Built:
    folder: Path
    info: FeatureStoreInfo
    log: CleanLog


@pytest.fixture(scope="module", params=["sqlite", pytest.param("redis", marks=pytest.mark.server)])
def built(
    request: pytest.FixtureRequest, clean_log: CleanLog, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp(f"store-{request.param}")
    if request.param == "sqlite":
        yield Built(folder / "store", build(clean_log.folder, folder / "store", feature_version=VERSION), clean_log)
        return
    with redis_server.running(folder) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv(REDIS_ADDRESS, address)
        info = build(clean_log.folder, folder / "store", feature_version=VERSION, online="redis")
        yield Built(folder / "store", info, clean_log)


def test_every_object_is_described_and_owned(built: Built) -> None:
    with open_store(built.folder) as store, quiet():
        entities = [e for e in store.list_entities() if not e.name.startswith("__")]
        sources = store.list_data_sources()
        views = store.list_feature_views()
        services = store.list_feature_services()
    assert [e.name for e in entities] == ["user", "item"]
    assert [s.name for s in services] == ["ctr_small_1_0_ab12"] == [built.info.feature_service]
    for thing in [*entities, *sources, *views, *services]:
        assert thing.description and thing.owner == "thinktwice", thing.name
        assert thing.tags["feature_version"] == VERSION
    wanted = {f.name for f in built.log.schema.model_fields_in_order() if f.origin not in ("key", "derived")} - {"slot"}
    assert {f.name for view in views for f in view.features} == wanted
    assert {f.name for p in services[0].feature_view_projections for f in p.features} == wanted
    assert all(f.description and f.tags["kind"] for view in views for f in view.features)
    assert {str(f.dtype) for v in views for f in v.features if f.name == "picture"} == {"Array(Float32)"}


def test_the_folder_names_no_place_outside_itself(built: Built) -> None:
    config = yaml.safe_load((built.folder / "feature_store.yaml").read_text())
    assert config["registry"]["path"] == "registry.db"
    assert config["offline_store"] == {"type": "duckdb"}
    assert config["entity_key_serialization_version"] == 3
    assert config["auth"] == {"type": "no_auth"}
    assert config["materialization"] == {"online_write_batch_size": 10_000}
    if built.info.online_store == "redis":
        assert config["online_store"]["connection_string"] == "${THINKTWICE_REDIS_ADDRESS}"
    for file in ("registry.db", "feature_store.yaml", "feature_store.json"):
        assert str(built.folder.parent).encode() not in (built.folder / file).read_bytes(), file
    assert not [p.name for p in built.folder.rglob("*") if p.name.startswith(".")]


def test_online_answers_equal_the_tables_also_after_a_move(built: Built, tmp_path: Path) -> None:
    moved = tmp_path / "else where"
    shutil.copytree(built.folder, moved)
    table = pl.read_parquet(moved / "data/item_statistics.parquet").sort("event_timestamp")
    latest = {r["item_id"]: r for r in table.to_dicts()}
    sequences = pl.read_parquet(moved / "data/user_sequences.parquet").filter(pl.col("user_id") == "u1")
    items = sorted(latest)
    answer = online.read(moved, "u1", [*items, "never seen"])
    assert answer["item_id"] == [*items, "never seen"]
    for name in built.log.schema.statistic_names("item"):
        assert answer[name] == [*(latest[i][name] for i in items), None]
    assert answer["last_clicks"] == [sequences["last_clicks"][-1].to_list()]
    assert answer["gender"] == [None]
    assert answer["picture"][items.index("i'1")] == pytest.approx([online_value("i'1"), 0.25, -1.5])
    assert answer["picture"][items.index("i'4")] in (None, [])
    nobody = online.read(moved, "nobody", items[:1])
    assert nobody["last_clicks"] == [None] and nobody["user_views_7d"] == [None]


def online_value(item: str) -> float:
    return float(sum(map(ord, item)))


def test_one_call_through_the_service_reads_user_and_items(built: Built) -> None:
    with open_store(built.folder) as store:
        service = store.get_feature_service(built.info.feature_service)
        rows = [{"user_id": "u2", "item_id": i} for i in ("i'1", "i'2")]
        answer = store.get_online_features(features=service, entity_rows=rows).to_dict()
    names = {f for v in built.info.views for f in v.features}
    assert set(answer) == names | {"user_id", "item_id"}
    assert answer["user_views_all"][0] == answer["user_views_all"][1]


def test_the_online_connection_is_closed(built: Built) -> None:
    """Feast keeps the one connection of its SQLite store open; both of our ways to open a store close it."""
    if built.info.online_store != "sqlite":
        pytest.skip("only the SQLite store keeps a connection to a file")

    def connection(store: Any) -> Any:
        return store._get_provider().online_store._conn

    with open_store(built.folder) as store, quiet():
        online.read_open(store, built.folder, "u1", ["i'1"])
        opened = connection(store)
        assert isinstance(opened, sqlite3.Connection)
    assert connection(store) is None
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened.execute("SELECT 1")

    served, service = open_feast(built.folder, built.info.feature_service)
    source = FeastSource(served, service, built.log.schema)
    source.fetch("user", ["u1"])
    opened = connection(served)
    assert isinstance(opened, sqlite3.Connection)
    source.close()
    assert connection(served) is None
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened.execute("SELECT 1")


def test_the_description_tells_a_predictor_everything(built: Built) -> None:
    assert read_info(built.folder) == built.info
    value = json.loads((built.folder / "feature_store.json").read_text())
    assert value["join_keys"] == {"user": "user_id", "item": "item_id"}
    assert [(v["name"], v["entity"]) for v in value["views"]] == [
        ("user_attributes", "user"),
        ("item_attributes", "item"),
        ("user_statistics", "user"),
        ("item_statistics", "item"),
        ("user_sequences", "user"),
    ]
    assert value["compared_values"] > 100
    assert all(v["rows"] > 0 for v in value["views"])


def test_a_wrong_online_value_is_found(built: Built, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(built.folder / "data", data)
    table = pl.read_parquet(data / "user_statistics.parquet")
    table.with_columns(pl.col("user_views_7d") + 1).write_parquet(data / "user_statistics.parquet")
    end = parse_time(built.info.end)
    with open_store(built.folder) as store:
        for spec in table_specs(built.log.schema):
            if spec.name == "user_statistics":
                with pytest.raises(FeatureStoreError, match=r"user_views_7d of user_id .* materialize again"):
                    compare_online(store, spec, data, end)
            else:
                assert compare_online(store, spec, data, end) > 0


def test_reads_are_answered_while_the_next_store_is_filled(built: Built, tmp_path: Path) -> None:
    from feast.feature_view import FeatureViewState

    with open_store(built.folder) as store:
        expected = online.read_open(store, built.folder, "u1", ["i'1"])
        failures: list[BaseException] = []
        answers = 0
        stop = threading.Event()

        def keep_reading() -> None:
            nonlocal answers
            reader = store_module.open_store(built.folder)
            with reader as opened:
                while not stop.is_set():
                    try:
                        assert online.read_open(opened, built.folder, "u1", ["i'1"]) == expected
                    except Exception as error:  # noqa: BLE001 - handed to the test
                        failures.append(error)
                        return
                    answers += 1

        thread = threading.Thread(target=keep_reading)
        thread.start()
        try:
            build(built.log.folder, built.folder, feature_version=VERSION, online=built.info.online_store)
        finally:
            stop.set()
            thread.join(30)
        assert not failures
        assert answers > 0
        # And a shared registry that does show the state of a running materialization does not refuse either.
        with open_store(built.folder) as shared, quiet():
            view = shared.get_feature_view("user_statistics")
            view.state = FeatureViewState.MATERIALIZING
            shared.registry.apply_feature_view(view, shared.project)
            shared.refresh_registry()
            assert online.read_open(shared, built.folder, "u1", ["i'1"]) == expected
            view.state = FeatureViewState.AVAILABLE_ONLINE
            shared.registry.apply_feature_view(view, shared.project)


def test_two_feature_versions_do_not_mix(
    built: Built, write_log: Callable[[str, list[Row]], CleanLog], tmp_path: Path
) -> None:
    before = online.read(built.folder, "u1", ["i'1"])
    other = write_log(SCHEMA, make_rows(seed=5, num_rows=80))
    build(other.folder, tmp_path / "other", feature_version="other", online=built.info.online_store)
    assert online.read(built.folder, "u1", ["i'1"]) == before
    assert online.read(tmp_path / "other", "u1", ["i'1"]) != before


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_online_rows_that_were_lost_are_written_again(built: Built, tmp_path: Path) -> None:
    before, files = online.read(built.folder, "u1", ["i'1"]), tree(built.folder)
    if built.info.online_store == "sqlite":
        assert ensure_online(built.folder) == 0
        return
    assert ensure_online(built.folder) == built.info.compared_values
    with redis_client() as client:
        client.flushall()
        assert online.read(built.folder, "u1", ["i'1"])["user_views_7d"] == [None]
        assert ensure_online(built.folder) == built.info.compared_values
        assert online.read(built.folder, "u1", ["i'1"]) == before
        client.flushall()
        # Tables that say something else than what was once written: the second comparison speaks.
        broken = tmp_path / "broken"
        shutil.copytree(built.folder, broken)
        table = pl.read_parquet(broken / "data/user_statistics.parquet")
        assert ensure_online(built.folder) > 0
        table.with_columns(pl.col("user_views_7d") + 1).write_parquet(broken / "data/user_statistics.parquet")
        with pytest.raises(FeatureStoreError, match="user_views_7d of user_id"):
            ensure_online(broken)
    assert tree(built.folder) == files  # the cache of the pipeline would take a changed folder for a damaged one


def test_a_redis_that_is_gone_is_named(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    if built.info.online_store == "sqlite":
        pytest.skip("sqlite lies in the folder")
    monkeypatch.setenv(REDIS_ADDRESS, "127.0.0.1:1")
    with pytest.raises(FeatureStoreError, match=r"no Redis answers at 127\.0\.0\.1:1"):
        ensure_online(built.folder)
    monkeypatch.delenv(REDIS_ADDRESS)
    with pytest.raises(FeatureStoreError, match="set THINKTWICE_REDIS_ADDRESS"):
        ensure_online(built.folder)


def redis_client() -> redis.Redis:
    host, port = os.environ[REDIS_ADDRESS].split(":")
    return redis.Redis(host=host, port=int(port))


def test_an_interrupted_build_leaves_the_old_store(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(p.name for p in built.folder.parent.iterdir())

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "compare_online", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(built.log.folder, built.folder, feature_version=VERSION, online=built.info.online_store)
    assert sorted(p.name for p in built.folder.parent.iterdir()) == before
    assert read_info(built.folder) == built.info


def test_bad_online_stores_are_named(clean_log: CleanLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REDIS_ADDRESS, raising=False)
    cases = [
        ("dynamo", "", "'dynamo' is unknown: choose one of sqlite, redis"),
        ("redis", "", "set THINKTWICE_REDIS_ADDRESS"),
        ("redis", "localhost", "is not host:port"),
        ("redis", "127.0.0.1:1", "no Redis answers at 127.0.0.1:1"),
    ]
    for kind, address, message in cases:
        with pytest.raises(FeatureStoreError, match=message):
            build(clean_log.folder, tmp_path / "out", feature_version="v", online=kind, redis_address=address)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FeatureStoreError, match="is not a feature store"):
        read_info(tmp_path)


def test_the_tables_are_derived_once_in_a_build(
    clean_log: CleanLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(schema: LogSchema) -> tuple[TableSpec, ...]:
        calls.append(schema.name)
        return table_specs(schema)

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith(("feature_repo", "thinktwice")) and hasattr(
            module, "table_specs"
        ):
            monkeypatch.setattr(module, "table_specs", counted)
    build(clean_log.folder, tmp_path / "store", feature_version=VERSION)
    assert len(calls) == 1


@pytest.mark.parametrize("keep", ["user", "item", ""])
def test_logs_with_fewer_entities(write_log: Callable[[str, list[Row]], CleanLog], tmp_path: Path, keep: str) -> None:
    text = {
        "user": "entities: {user: {key: user_id}}\nstatistics: {entities: [user]}",
        "item": "entities: {item: {key: item_id}}\nfields: [{name: genre, entity: item}]",
        "": "fields: [{name: slot}]",
    }[keep]
    log = write_log(f"name: small\ntime: {{column: at}}\n{text}", make_rows(num_rows=40))
    info = build(log.folder, tmp_path / "store", feature_version="v2")
    assert [v.name for v in info.views] == {"user": ["user_statistics"], "item": ["item_attributes"], "": []}[keep]
    assert info.feature_service == ("ctr_v2" if keep else "")
    assert (tmp_path / "store/online.db").exists() == bool(keep)
    assert read_info(tmp_path / "store") == info
