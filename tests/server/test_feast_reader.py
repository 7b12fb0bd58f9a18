"""The Feast reader on a real feature store: values of the tables, cold ids by value, a missing service by name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from feature_repo.store import REDIS_VARIABLE, build
from serving.feast_reader import FeastReader
from tests.features import redis_server
from tests.serving.small import FEATURE_SERVICE, MODEL_VERSION, SCHEMA
from thinktwice.champion import Champion
from thinktwice.errors import FeatureStoreError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Feast keeps its connection open as long as it lives
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass(frozen=True)
class Store:
    """A feature store folder and the kind of its online store."""

    folder: Path
    online: str


@pytest.fixture(scope="module", params=["sqlite", pytest.param("redis", marks=pytest.mark.server)])
def store(
    request: pytest.FixtureRequest, champion: Champion, state: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    if request.param == "sqlite":
        yield Store(champion.feature_store_dir, "sqlite")
        return
    folder = tmp_path_factory.mktemp("redis")
    with redis_server.running(folder) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv(REDIS_VARIABLE, address)
        build(state.parent / "clean", folder / "store", model_version=MODEL_VERSION, online="redis")
        yield Store(folder / "store", "redis")


@pytest.fixture(scope="module")
def reader(store: Store) -> FeastReader:
    return FeastReader(store.folder, FEATURE_SERVICE, SCHEMA)


def latest(store: Store, table: str, key: str, value: str) -> dict[str, object]:
    frame = pl.read_parquet(store.folder / "data" / f"{table}.parquet").filter(pl.col(key) == value)
    return frame.sort("event_timestamp").drop(key, "event_timestamp", "created_timestamp").row(-1, named=True)


def test_the_latest_values_of_the_tables(reader: FeastReader, store: Store) -> None:
    features = reader.read("u3", ["i5", "i9", "i5"])
    tables = ("attributes", "statistics", "sequences")
    expected = {k: v for t in tables for k, v in latest(store, f"user_{t}", "user_id", "u3").items()}
    assert features.user == expected
    assert len(features.user["history"]) > 0
    assert features.items.keys() == {"i5", "i9"}
    for item in ("i5", "i9"):
        found = {k: v for t in tables[:2] for k, v in latest(store, f"item_{t}", "item_id", item).items()}
        assert features.items[item] == found
    assert not features.cold_user
    assert not features.cold_items


def test_cold_ids(reader: FeastReader) -> None:
    features = reader.read("nobody", ["i5", "nothing"])
    assert features.cold_user
    assert features.cold_items == {"nothing"}
    assert set(features.user.values()) == {None}
    assert set(features.items["nothing"].values()) == {None}
    assert features.user.keys() >= {"gender", "history", "user_views_all"}


def test_a_missing_service_is_named_with_those_there_are(store: Store) -> None:
    with pytest.raises(FeatureStoreError, match=rf"no feature service 'ctr_gone' \(it has: {FEATURE_SERVICE}\)"):
        FeastReader(store.folder, "ctr_gone", SCHEMA)


@pytest.mark.server
def test_redis_that_ends_under_the_reader(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server.running(tmp_path) as address:
        monkeypatch.setenv(REDIS_VARIABLE, address)
        build(state.parent / "clean", tmp_path / "store", model_version=MODEL_VERSION, online="redis")
        reader = FeastReader(tmp_path / "store", FEATURE_SERVICE, SCHEMA)
        assert not reader.read("u1", ["i1"]).cold_user
    with pytest.raises(FeatureStoreError, match="the online store does not answer for user features"):
        reader.read("u1", ["i1"])


def test_an_online_store_that_breaks(champion: Champion, tmp_path: Path) -> None:
    shutil.copytree(champion.feature_store_dir, tmp_path / "store")
    reader = FeastReader(tmp_path / "store", FEATURE_SERVICE, SCHEMA)
    (tmp_path / "store" / "online.db").write_bytes(b"no database" * 100)
    with pytest.raises(FeatureStoreError, match="the online store does not answer for user features"):
        reader.read("u1", ["i1"])
