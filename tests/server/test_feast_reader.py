"""The Feast reader on a real feature store: values of the tables, cold ids by value, a missing service by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from serving.feast_reader import FeastReader
from tests.serving.small import FEATURE_SERVICE, SCHEMA
from thinktwice.champion import Champion
from thinktwice.errors import FeatureStoreError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Feast keeps its connection open as long as it lives
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def reader(champion: Champion) -> FeastReader:
    return FeastReader(champion.feature_store_dir, FEATURE_SERVICE, SCHEMA)


def latest(champion: Champion, table: str, key: str, value: str) -> dict[str, object]:
    frame = pl.read_parquet(champion.feature_store_dir / "data" / f"{table}.parquet").filter(pl.col(key) == value)
    return frame.sort("event_timestamp").drop(key, "event_timestamp", "created_timestamp").row(-1, named=True)


def test_the_latest_values_of_the_tables(reader: FeastReader, champion: Champion) -> None:
    features = reader.read("u3", ["i5", "i9", "i5"])
    tables = ("attributes", "statistics", "sequences")
    expected = {k: v for t in tables for k, v in latest(champion, f"user_{t}", "user_id", "u3").items()}
    assert features.user == expected
    assert len(features.user["history"]) > 0
    assert features.items.keys() == {"i5", "i9"}
    for item in ("i5", "i9"):
        found = {k: v for t in tables[:2] for k, v in latest(champion, f"item_{t}", "item_id", item).items()}
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


def test_a_missing_service_is_named_with_those_there_are(champion: Champion) -> None:
    with pytest.raises(FeatureStoreError, match=rf"no feature service 'ctr_gone' \(it has: {FEATURE_SERVICE}\)"):
        FeastReader(champion.feature_store_dir, "ctr_gone", SCHEMA)


def test_an_online_store_that_breaks(champion: Champion, tmp_path: Path) -> None:
    shutil.copytree(champion.feature_store_dir, tmp_path / "store")
    reader = FeastReader(tmp_path / "store", FEATURE_SERVICE, SCHEMA)
    (tmp_path / "store" / "online.db").write_bytes(b"no database" * 100)
    with pytest.raises(FeatureStoreError, match="the online store does not answer for user features"):
        reader.read("u1", ["i1"])
