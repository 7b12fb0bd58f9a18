"""Real online stores that are broken, emptied, stopped and put right again: what is answered, and what the log tells."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from feature_repo.store import build
from serving.features.lookup import OnlineFeatureReader
from serving.features.snapshot_reader import SnapshotReader
from serving.telemetry.state import CALM
from tests.features import redis_server
from tests.server.test_readers import Store, _until, opened
from tests.serving.conftest import Lines, lines
from tests.serving.small import MODEL_VERSION
from thinktwice.data.encoder import Encoder
from thinktwice.release.bundle import load_bundle
from thinktwice.release.champion import Champion
from thinktwice.release.feature_store import REDIS_ADDRESS

__all__ = ["lines"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ITEMS = [f"i{i}" for i in range(60)]


@dataclass
class Faults:
    """A store, and what can be done to it."""

    store: Store
    empty: Callable[[], None]
    fill: Callable[[], None]
    stop: Callable[[], None]
    go_on: Callable[[], None]


@pytest.fixture(scope="module")
def encoder(state: Path) -> Encoder:
    return load_bundle(state.parent / "bundle").encoder


@contextmanager
def sqlite_store(champion: Champion, tmp_path: Path) -> Iterator[Faults]:
    folder = tmp_path / "store"
    shutil.copytree(champion.feature_store_dir, folder)
    file, good = folder / "online.db", (folder / "online.db").read_bytes()

    def empty() -> None:
        with sqlite3.connect(file) as database:
            for (table,) in database.execute("select name from sqlite_master where type='table'").fetchall():
                database.execute(f'delete from "{table}"')
        database.close()

    def put(content: bytes) -> Callable[[], None]:
        def write() -> None:
            with file.open("r+b") as out:
                out.write(content)
                out.truncate()

        return write

    yield Faults(Store(folder, "sqlite"), empty, put(good), put(b"no database" * 500), put(good))


@contextmanager
def redis_store(state: Path, tmp_path: Path) -> Iterator[Faults]:
    folder = tmp_path / "store"
    with redis_server.started(tmp_path) as (address, process), pytest.MonkeyPatch.context() as patch:
        patch.setenv(REDIS_ADDRESS, address)

        def fill() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            build(state.parent / "clean", folder, feature_version=MODEL_VERSION, online="redis")

        fill()
        client = redis.Redis.from_url(f"redis://{address}")
        yield Faults(
            Store(folder, "redis"),
            client.flushall,
            fill,
            lambda: process.send_signal(signal.SIGSTOP),
            lambda: process.send_signal(signal.SIGCONT),
        )
        client.close()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.server)])
def faults(request: pytest.FixtureRequest, champion: Champion, state: Path, tmp_path: Path) -> Iterator[Faults]:
    made = sqlite_store(champion, tmp_path) if request.param == "sqlite" else redis_store(state, tmp_path)
    with made as found:
        yield found


def messages(lines: Lines, logger: str) -> list[str]:
    return [line["message"] for line in lines if line["logger"].split(".")[-1] == logger]


@contextmanager
def reader_of(faults: Faults, encoder: Encoder) -> Iterator[SnapshotReader]:
    with opened(faults.store, encoder, "snapshot", lambda *_: None, timeout_ms=300) as reader:
        assert isinstance(reader, SnapshotReader)
        yield reader


def ask(reader: OnlineFeatureReader) -> tuple[str, ...]:
    return reader.read("u1", ["i1", "i2"]).defaulted


def test_an_emptied_store_keeps_the_snapshot_until_it_is_filled_again(
    faults: Faults, encoder: Encoder, lines: Lines
) -> None:
    with reader_of(faults, encoder) as reader:
        before = list(reader.read("u1", ITEMS).items)
        faults.empty()
        for _ in range(3):
            assert not reader.refill()
        found = reader.read("u1", ITEMS)
        assert list(found.items) == before and not any(found.cold_items)
        assert found.cold_user, "users are looked up in the store, which knows nothing"
        assert reader.lost == 60
        faults.fill()
        assert reader.refill()
        assert not reader.read("u1", ITEMS).cold_user
        first, second = messages(lines, "snapshot_reader")
        assert first.startswith("60 of 60 items have lost their features in the store")
        assert second.startswith("the store has the features of the items again")
        assert messages(lines, "guarded_source") == []


def test_a_store_that_breaks_is_told_once_and_once_more_when_it_answers(
    faults: Faults, encoder: Encoder, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reader_of(faults, encoder) as reader:
        assert ask(reader) == ()
        faults.stop()
        for _ in range(20):
            assert ask(reader) == ("user",)
        (told,) = messages(lines, "guarded_source")
        assert told.endswith(": lookups get defaults until the online store answers")
        faults.go_on()
        _until(lambda: ask(reader) == ())
        clock = reader._lookup.source._clock  # type: ignore[attr-defined]
        monkeypatch.setattr(reader._lookup.source.trouble, "_clock", lambda: clock() + CALM)  # type: ignore[attr-defined]
        for _ in range(20):
            assert ask(reader) == ()
        assert len(messages(lines, "guarded_source")) == 2
        assert messages(lines, "guarded_source")[1].startswith("the online store answers again, after ")
        text = " ".join(line["message"] for line in lines)
        assert "u1" not in text and "i1" not in text
