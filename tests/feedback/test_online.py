"""What the service writes is what Feast reads, on SQLite and on Redis; a push by Feast's own SDK gives the same bytes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from serving.features.counters import CounterReader, Counters
from serving.features.feast_source import FeastSource, open_feast
from serving.features.guarded_source import GuardedSource
from serving.features.lookup import DirectReader, Lookup
from serving.features.redis_source import RedisSource
from serving.feedback.book import Book
from serving.feedback.online import OnlineStore
from serving.feedback.records import Record
from tests.data.instant.logs import assert_same_bits
from tests.features import redis_server
from tests.feedback.server import until
from tests.feedback.stores import full_schema, make_store, random_log
from tests.feedback.streams import SECOND, book_for, counters_at, in_order, run, tick, values_of
from thinktwice.data.pushed_views import push_source_name
from thinktwice.errors import FeatureStoreError
from thinktwice.files import read_json

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
LOG = random_log(150)
SCHEMA = full_schema()
DAY = 86_400 * SECOND


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server.running(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    address = request.getfixturevalue("redis") if request.param == "redis" else ""
    return make_store(tmp_path_factory.mktemp(request.param), LOG, SCHEMA, address, version=f"t-{request.param}")


@pytest.fixture(scope="module")
def book() -> Book:
    made = book_for(SCHEMA)
    run(made, SCHEMA, [Record("start", 0), *in_order(LOG), tick((LOG[-1].time // DAY + 1) * DAY + 700 * SECOND)])
    return made


def write(folder: Path, book: Book) -> None:
    store = OnlineStore(folder)
    store.write(r for r in book.rows() if r.kind != "log")
    content = book.content("log", "log")
    assert content is not None
    store.write_watermark(content, book.watermark, book.stamp)
    store.close()


def sources(folder: Path) -> Iterator[Any]:
    store, service = open_feast(folder, read_json(folder / "feature_store.json")["feature_service"])
    yield FeastSource(store, service, SCHEMA, states=True)
    if store.config.online_store.type == "redis":
        yield RedisSource(store, SCHEMA, states=True)


def read(source: Any, reader: CounterReader, user: str | None, items: list[str], instant: int, row: Any) -> Counters:
    """The counters of a request whose items all have the topics of ``row``."""
    values = values_of(row)
    states = source.fetch_request(user, items, []).states
    return reader.read(states, len(items), instant, values, reader.topics_of([values] * len(items)))


def test_what_was_pushed_is_what_a_request_reads(folder: Path, book: Book) -> None:
    write(folder, book)
    for source in sources(folder):
        reader = CounterReader(SCHEMA, max_age=10**6)
        for row in LOG[-30:]:
            row = type(row)(book.at + 1, row.clicked, row.user, row.item, row.topics, row.attributes)
            got = read(source, reader, row.user, [row.item or "", "never seen"], row.time, row)
            assert got.trouble is None
            assert_same_bits(got.values[:1], counters_at(book, row)[None], book.definition.names)
        source.close()


def test_sequences_and_whole_days_are_those_of_the_feature_tables(folder: Path, book: Book) -> None:
    """The log begins with all that was before, so what is pushed equals what a materialization of the whole log writes."""
    write(folder, book)
    last = book.at // DAY * DAY
    source = next(sources(folder))
    for name, entity, key in (
        ("user_sequences", "user", "user_id"),
        ("user_statistics", "user", "user_id"),
        ("item_statistics", "item", "item_id"),
    ):
        table = pl.read_parquet(folder / "data" / f"{name}.parquet").filter(
            pl.col("event_timestamp").dt.epoch("us") <= (last if "statistics" in name else book.at)
        )
        latest = table.sort("event_timestamp").group_by(key).last().sort(key)
        assert latest.height
        columns = [c for c in latest.columns if c not in (key, "event_timestamp", "created_timestamp")]
        rows = source.fetch(entity, latest[key].to_list())
        for expected, got in zip(latest.to_dicts(), rows, strict=True):
            for column in columns:
                value = got.values[column]
                if isinstance(expected[column], list):
                    # Training orders values of one instant by row id, which a served event does not have.
                    assert sorted(value or []) == sorted(expected[column]), (name, expected[key], column)
                else:
                    np.testing.assert_allclose(value, expected[column], rtol=1e-12, err_msg=f"{name} {column}")
    source.close()


def test_a_push_of_the_sdk_writes_the_same(tmp_path: Path, book: Book) -> None:
    import pandas as pd

    folder = make_store(tmp_path, LOG, SCHEMA)
    rows = [r for r in book.rows() if r.kind == "item"]
    write(folder, book)

    def stored() -> list[Any]:
        with sqlite3.connect(folder / "online.db") as db:
            table = f"{OnlineStore(folder).project}_item_instant"
            return db.execute(f"SELECT entity_key, feature_name, value, event_ts FROM {table} ORDER BY 1, 2").fetchall()

    ours = stored()
    store, _ = open_feast(folder, read_json(folder / "feature_store.json")["feature_service"])
    at = pd.to_datetime([r.stamp for r in rows], unit="us", utc=True)
    frame = pd.DataFrame({"item_id": [r.key for r in rows], "state": [r.content for r in rows], "event_timestamp": at})
    frame["created_timestamp"] = at
    store.push(push_source_name("item_instant"), frame)
    assert stored() == ours and len(ours) == len(rows)


def test_counters_without_news_are_unknown_and_counted(folder: Path, book: Book) -> None:
    write(folder, book)
    for source in sources(folder):
        reader, row = CounterReader(SCHEMA, max_age=60), LOG[-1]
        fresh = read(source, reader, row.user, [row.item or ""], book.watermark + 60 * SECOND, row)
        stale = read(source, reader, row.user, [row.item or ""], book.watermark + 60 * SECOND + 1, row)
        assert not np.isnan(fresh.values).all() and np.isnan(stale.values).all()
        assert fresh.trouble is None and stale.trouble == "stale"
        source.close()


def test_a_store_that_hangs_or_fails_costs_counters_and_no_time(folder: Path, book: Book) -> None:
    """Behind the same guard as all lookups: bounded in time, given up after some failures, and tried again."""
    write(folder, book)
    inner, go, broken = next(sources(folder)), threading.Event(), [False]
    real = inner.fetch_request

    def fetch_request(*arguments: Any) -> Any:
        if broken[0]:
            go.wait(60)
        return real(*arguments)

    inner.fetch_request = fetch_request
    clock = [0.0]
    guarded = GuardedSource(inner, timeout=5.0, threads=2, clock=lambda: clock[0])
    feature_reader = DirectReader(Lookup(guarded, on_default=lambda *_: None), states=True)
    reader = CounterReader(SCHEMA, max_age=None)
    values = values_of(LOG[-1])

    def unknown() -> bool:
        states = feature_reader.read("u", ["i"]).states
        got = reader.read(states, 1, book.at + 1, values, reader.topics_of([values]))
        assert (got.trouble == "failed") == bool(np.isnan(got.values).all())
        return got.trouble == "failed"

    assert not unknown()
    guarded._timeout, broken[0] = 0.01, True
    assert all([unknown() for _ in range(8)])
    go.set()
    guarded._timeout, clock[0], broken[0] = 5.0, 10.0, False
    until(lambda: not unknown())  # the lookups that hung give their threads back
    guarded.close()


def test_a_store_that_nothing_was_pushed_to_knows_nothing(tmp_path: Path) -> None:
    source = next(sources(make_store(tmp_path, LOG, SCHEMA)))
    got = read(source, CounterReader(SCHEMA), "u", ["i", "j"], LOG[0].time, LOG[0])
    assert np.isnan(got.values).all() and got.trouble == "without_watermark"
    source.close()


def test_a_store_of_another_definition_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_store(tmp_path, LOG, SCHEMA)
    schema = (folder / "schema.yaml").read_text()
    (folder / "schema.yaml").write_text(schema.replace("click: 5\n", "click: 6\n"))
    with pytest.raises(FeatureStoreError, match=r"view user_instant .* was made for the definition [0-9a-f]{64}, and"):
        OnlineStore(folder)


def test_a_log_without_instant_statistics_has_no_feedback(tmp_path: Path) -> None:
    from thinktwice.schema import parse_schema

    plain = SCHEMA.to_yaml()
    start = plain.index("statistics:")
    schema = parse_schema(plain[:start] + "statistics: {}\n", where="test")
    folder = make_store(tmp_path, LOG, schema)
    assert not list((folder / "data").glob("*_instant.parquet"))
    with pytest.raises(FeatureStoreError, match=r"no statistics\.instant"):
        OnlineStore(folder)
