"""All readers on real stores, one suite: the values of the tables, cold and stale by value and time, the same rows encoded."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest

from feature_repo.store import build
from serving.features.feast_source import FeastSource, open_feast
from serving.features.lookup import DirectReader, Entity, FeatureRow, OnDefault, OnlineFeatureReader
from serving.features.open_reader import FeatureConfig, open_reader
from serving.features.redis_source import RedisSource
from serving.features.snapshot_reader import SnapshotReader
from tests.features import redis_server
from tests.serving.small import FEATURE_SERVICE, MODEL_VERSION, SCHEMA
from thinktwice.data.encoder import Encoder
from thinktwice.errors import FeatureStoreError
from thinktwice.parquet import read_frame
from thinktwice.release.bundle import load_bundle
from thinktwice.release.champion import Champion
from thinktwice.release.feature_store import REDIS_ADDRESS

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Feast keeps its connection open as long as it lives
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ITEMS = ["i5", "i9", "i5", "nothing"]
ITEM_FIELDS = [f.name for f in SCHEMA.model_fields_in_order() if f.entity == "item"]
Kind = Literal["snapshot", "feast", "redis"]


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
        patch.setenv(REDIS_ADDRESS, address)
        build(state.parent / "clean", folder / "store", feature_version=MODEL_VERSION, online="redis")
        yield Store(folder / "store", "redis")


@pytest.fixture(scope="module")
def encoder(state: Path) -> Encoder:
    return load_bundle(state.parent / "bundle").encoder


@contextmanager
def opened(
    store: Store, encoder: Encoder, kind: Kind, on_default: OnDefault | None = None, **more: Any
) -> Iterator[OnlineFeatureReader]:
    config = FeatureConfig(reader=kind, **{"timeout_ms": 10_000, **more})
    made = open_reader(store.folder, FEATURE_SERVICE, SCHEMA, encoder, config, on_default)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module", params=["snapshot", "feast", "redis"])
def reader(request: pytest.FixtureRequest, store: Store, encoder: Encoder) -> Iterator[OnlineFeatureReader]:
    if request.param == "redis" and store.online == "sqlite":
        pytest.skip("the thin reader reads Redis only")
    with opened(store, encoder, request.param, max_age_seconds=1e12) as made:
        yield made


def latest(store: Store, table: str, key: str, value: str) -> dict[str, object]:
    frame = read_frame(store.folder / "data" / f"{table}.parquet").filter(pl.col(key) == value)
    return frame.sort("event_timestamp").drop(key, "event_timestamp", "created_timestamp").row(-1, named=True)


def test_the_latest_values_of_the_tables(reader: OnlineFeatureReader, store: Store) -> None:
    features = reader.read("u3", ITEMS)
    tables = ("attributes", "statistics", "sequences")
    expected = {k: v for t in tables for k, v in latest(store, f"user_{t}", "user_id", "u3").items()}
    assert features.user == expected
    assert len(features.user["history"]) > 0
    for place, item in enumerate(ITEMS[:3]):
        found = {k: v for t in tables[:2] for k, v in latest(store, f"item_{t}", "item_id", item).items()}
        assert features.items[place] == found
    assert len(features.items) == 4
    assert set(features.items[3].values()) == {None}
    assert features.items[3].keys() == features.items[0].keys()
    assert features.defaulted == ()


def test_cold_by_value(reader: OnlineFeatureReader) -> None:
    features = reader.read("u3", ITEMS)
    assert (features.cold_user, features.cold_items) == (False, (False, False, False, True))
    features = reader.read("nobody", ["nothing", "i5"])
    assert (features.cold_user, features.cold_items) == (True, (True, False))
    assert set(features.user.values()) == {None}
    assert features.user.keys() >= {"gender", "history", "user_views_all"}


def test_nothing_is_stale_within_the_allowed_age(reader: OnlineFeatureReader) -> None:
    features = reader.read("nobody", ITEMS)
    assert (features.stale_user, features.stale_items) == (False, (False,) * 4)


def test_rows_are_encoded_as_their_values_are(reader: OnlineFeatureReader, encoder: Encoder) -> None:
    features = reader.read("u3", ITEMS)
    rows = [{**values, "item_id": item} for item, values in zip(ITEMS, features.items, strict=True)]
    expected = encoder.encode_side(rows, ITEM_FIELDS)
    if features.encoded_items is None:
        assert isinstance(reader, DirectReader)
        return
    found = features.encoded_items
    assert found.columns == expected.columns
    np.testing.assert_array_equal(found.ids, expected.ids)
    assert found.vectors.keys() == expected.vectors.keys() == {"cover"}
    for name, block in expected.vectors.items():
        np.testing.assert_array_equal(found.vectors[name], block)


def test_all_users_and_items_as_the_sdk_gives_them(reader: OnlineFeatureReader, store: Store, encoder: Encoder) -> None:
    """The oracle, value by value and type by type."""
    items = [f"i{i}" for i in range(60)] + ["", "ä b", "x" * 300]
    with opened(store, encoder, "feast") as oracle:
        for user in ("u0", "u29", "", "ä b"):
            found, expected = reader.read(user, items), oracle.read(user, items)
            assert repr(dict(found.user)) == repr(dict(expected.user))
            assert [repr(dict(row)) for row in found.items] == [repr(dict(row)) for row in expected.items]
            assert (found.cold_user, found.cold_items) == (expected.cold_user, expected.cold_items)


@pytest.mark.parametrize("kind", ["snapshot", "feast", "redis"])
def test_stale_by_the_newest_timestamp(store: Store, encoder: Encoder, kind: Kind) -> None:
    """i5 counts as old as the newest row of its views in the tables."""
    if kind == "redis" and store.online == "sqlite":
        pytest.skip("the thin reader reads Redis only")
    newest = max(
        read_frame(store.folder / "data" / f"item_{t}.parquet")
        .filter(pl.col("item_id") == "i5")["event_timestamp"]
        .max()
        .replace(tzinfo=timezone.utc)  # type: ignore[union-attr]
        for t in ("attributes", "statistics")
    )
    age = (datetime.now(timezone.utc) - newest).total_seconds()
    for allowed, stale in ((age - 3600, True), (age + 3600, False)):
        with opened(store, encoder, kind, max_age_seconds=allowed) as made:
            features = made.read(None, ["i5", "nothing"])
        assert features.stale_items == (stale, False)
        assert not features.stale_user


def test_the_thin_reader_refuses_another_store(champion: Champion, encoder: Encoder) -> None:
    with (
        pytest.raises(FeatureStoreError, match="in sqlite, not in Redis"),
        opened(Store(champion.feature_store_dir, "sqlite"), encoder, "redis"),
    ):
        raise AssertionError("it was opened")
    feast, found = open_feast(champion.feature_store_dir, FEATURE_SERVICE)
    with (
        closing(FeastSource(feast, found, SCHEMA)),
        pytest.raises(FeatureStoreError, match="SqliteOnlineStore, not Redis"),
    ):
        RedisSource(feast, SCHEMA)


def test_a_missing_service_is_named_with_those_there_are(store: Store) -> None:
    with pytest.raises(FeatureStoreError, match=rf"no feature service 'ctr_gone' \(it has: {FEATURE_SERVICE}\)"):
        open_feast(store.folder, "ctr_gone")


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match=r"is not a feature store \(no feature_store.yaml\)"):
        open_feast(tmp_path, FEATURE_SERVICE)


def test_an_online_store_that_breaks(champion: Champion, encoder: Encoder, tmp_path: Path) -> None:
    shutil.copytree(champion.feature_store_dir, tmp_path / "store")
    store = Store(tmp_path / "store", "sqlite")
    told: list[tuple[str, str]] = []
    with (
        opened(store, encoder, "feast") as strict,
        opened(store, encoder, "feast", lambda entity, reason: told.append((entity, reason))) as lenient,
    ):
        (tmp_path / "store" / "online.db").write_bytes(b"no database" * 100)
        with pytest.raises(FeatureStoreError, match="the online store does not answer for user features"):
            strict.read("u1", ["i1"])
        features = lenient.read("u1", ["i1", "i2"])
    assert features.defaulted == ("user", "item")
    assert told == [("user", "error"), ("item", "error")]
    assert set(features.user.values()) == set(features.items[1].values()) == {None}
    assert not features.cold_user and not any(features.cold_items), "unknown for want of a store is not cold"


@pytest.mark.server
def test_a_redis_that_hangs_and_comes_back_and_ends(state: Path, encoder: Encoder, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    store = Store(tmp_path / "store", "redis")
    with ExitStack() as stack:
        with redis_server.started(tmp_path) as (address, process), pytest.MonkeyPatch.context() as patch:
            patch.setenv(REDIS_ADDRESS, address)
            build(state.parent / "clean", store.folder, feature_version=MODEL_VERSION, online="redis")
            reader = stack.enter_context(
                opened(store, encoder, "snapshot", lambda *found: told.append(found), timeout_ms=200)
            )
            whole = reader.read("u1", ["i1"])
            assert whole.defaulted == () and not whole.cold_user
            process.send_signal(signal.SIGSTOP)
            late = reader.read("u1", ["i1", "nothing"])
            assert late.defaulted == ("user", "item")
            assert [reason for _, reason in told] == ["timeout", "timeout"]
            assert late.items[0] == whole.items[0], "items of the snapshot do not depend on the store"
            process.send_signal(signal.SIGCONT)
            _until(lambda: reader.read("u1", ["i1"]).defaulted == ())
        gone = reader.read("u1", ["i1"])
        assert gone.defaulted == ("user",)
        assert told[-1] in (("user", "error"), ("user", "timeout")), "refused at once, or still trying to connect"
        assert gone.items[0] == whole.items[0]
        assert isinstance(reader, SnapshotReader)
        assert not reader.refill() and reader.failures == 1
        assert len(reader) == 60


def test_the_snapshot_is_filled_anew(champion: Champion, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the store says later is what later requests get; meanwhile, whole requests see one state or the other."""
    with opened(Store(champion.feature_store_dir, "sqlite"), encoder, "snapshot") as reader:
        assert isinstance(reader, SnapshotReader)
        before, filled = reader.read(None, ["i1", "i2"]), reader.filled
        source = reader._fill.source
        real = source.fetch

        def later(entity: Entity, ids: Sequence[str], timeout: float | None = None) -> list[FeatureRow]:
            return [FeatureRow({**row.values, "genre": "g4"}, row.newest) for row in real(entity, ids, timeout)]

        monkeypatch.setattr(source, "fetch", later)
        seen: list[tuple[Any, ...]] = []
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                seen.append(tuple(row["genre"] for row in reader.read(None, ["i1", "i2", "i3"]).items))

        thread = threading.Thread(target=look)
        thread.start()
        _until(lambda: bool(seen))
        assert reader.refill()
        _until(lambda: seen[-1] == ("g4", "g4", "g4"))
        stop.set()
        thread.join()
        assert set(seen) == {("g1", "g2", "g3"), ("g4", "g4", "g4")}
        after = reader.read(None, ["i1", "i2"])
        assert before.items[0]["genre"] == "g1" and after.items[0]["genre"] == "g4"
        assert reader.filled > filled


def test_a_refill_works_in_short_turns_with_rests(
    champion: Champion, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(Store(champion.feature_store_dir, "sqlite"), encoder, "snapshot") as reader:
        assert isinstance(reader, SnapshotReader)
        items = [f"i{n}" for n in range(60)]
        before = reader.read(None, items)
        values = list(before.items)
        source, asked, rests = reader._fill.source, list[int](), list[float]()
        real = source.fetch

        def counted(entity: Entity, ids: Sequence[str], timeout: float | None = None) -> list[FeatureRow]:
            asked.append(len(ids))
            return real(entity, ids, timeout)

        monkeypatch.setattr("serving.features.snapshot_reader.PIECE", 7)
        monkeypatch.setattr("serving.features.snapshot_reader.CHUNK", 14)
        monkeypatch.setattr(source, "fetch", counted)
        monkeypatch.setattr(reader._stop, "wait", lambda seconds: rests.append(seconds))
        assert reader.refill()
        assert asked == [7] * 8 + [4]
        assert len(rests) == len(asked) and min(rests) > 0
        after = reader.read(None, items)
        assert list(after.items) == values and len(values) == 60
        assert before.encoded_items is not None and after.encoded_items is not None
        np.testing.assert_array_equal(after.encoded_items.ids, before.encoded_items.ids)


def _until(what: Any) -> None:
    for _ in range(400):
        if what():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 20 s")
