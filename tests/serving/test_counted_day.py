"""A day of requests of a real predictor, with feedback between them: its log has the counters of training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pytest
from prometheus_client import CollectorRegistry

from feature_repo.skew import measure_skew
from serving.config import ServingConfig
from serving.features.open_reader import FeatureConfig
from serving.feedback.online import OnlineStore
from serving.feedback.records import Record
from serving.open_service import open_service
from serving.telemetry.prediction_log import PredictionLogConfig
from tests.data.instant.oracle import Row
from tests.features import redis_server
from tests.feedback.stores import random_log, write_clean
from tests.feedback.streams import SECOND, book_for, click, impression, in_order, run, tick
from tests.serving.counted import LOG, NOW, SCHEMA, Counted, make_counted, push_to
from thinktwice.errors import FeatureStoreError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
DAY = 86_400  # seconds


def _day(counted: Counted, requests: int) -> list[Row]:
    """Impressions of known users and items, evenly over a day."""
    items = (
        pl.read_parquet(counted.store / "data" / "item_attributes.parquet")
        .sort("event_timestamp")
        .unique("item_id", keep="last", maintain_order=True)
    )
    users = (
        pl.read_parquet(counted.store / "data" / "user_attributes.parquet")
        .sort("event_timestamp")
        .unique("user_id", keep="last", maintain_order=True)
    )
    topics = {row["item_id"]: (row["genre"], row["kind"]) for row in items.iter_rows(named=True)}
    attributes = {row["user_id"]: (row["city"], row["sex"]) for row in users.iter_rows(named=True)}
    rows = []
    for n, row in enumerate(random_log(requests, seed=5)):
        user, item = row.user or "u", row.item or "i"
        rows.append(Row(NOW + n * (DAY // requests) * SECOND, n % 3 == 0, user, item, topics[item], attributes[user]))
    return rows


def _down(*_: object) -> None:
    raise FeatureStoreError("the online store does not answer")


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def counted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    folder = tmp_path_factory.mktemp(f"day-{request.param}")
    if request.param == "sqlite":
        yield make_counted(folder, version="day-sqlite")
        return
    with redis_server.running(folder) as address:
        yield make_counted(folder, redis=address, version="day-redis")


def test_a_replayed_day_has_the_counters_of_training(counted: Counted, tmp_path: Path) -> None:
    day, book = _day(counted, 240), book_for(SCHEMA)
    unknown = {number: ("stale", "failed")[number // 20 % 2] for number in range(7, len(day), 20)}
    run(book, SCHEMA, [Record("start", 0), *in_order(LOG)])
    config = ServingConfig(
        shed=False,
        access_log=False,
        features=FeatureConfig(timeout_ms=10_000),
        prediction_log=PredictionLogConfig(folder=str(tmp_path / "log"), sample=1.0),
    )
    service = open_service(
        counted.bundles["corrected"],
        config,
        model_name="ctr",
        feature_store=counted.store,
        registry=CollectorRegistry(),
    )
    online = OnlineStore(counted.store)
    try:
        for number, row in enumerate(day):
            expected = unknown.get(number, "used")
            source = service.scorer.reader.source._source  # type: ignore[union-attr]
            reads = source.fetch_request, source.fetch_request_within
            if expected != "stale":  # else the feedback service is down
                run(book, SCHEMA, [tick(row.time)])
                push_to(online, book)
            if expected == "failed":
                source.fetch_request = source.fetch_request_within = _down
            source._watermark_read = -1e9  # half a second passes
            request = {"user_id": row.user, "candidates": [row.item], "context": {"timestamp": row.time / 1e6}}
            reply = service.answer(orjson.dumps({"instances": [request]}), {})
            source.fetch_request, source.fetch_request_within = reads
            (prediction,) = orjson.loads(reply.body)["predictions"]
            assert prediction["counters"] == expected
            assert prediction["items"][0]["corrected"] == (expected == "used")
            run(book, SCHEMA, [impression(row, 1000 + number)])
            if row.clicked:
                run(book, SCHEMA, [click(row, 1000 + number)])
    finally:
        online.close()
        service.close()
    write_clean(tmp_path / "later", [*LOG, *day], SCHEMA)
    report = measure_skew(tmp_path / "log", counted.store, clean_dir=tmp_path / "later")
    counters = {f.name: f for f in report.fields if f.name in book.definition.names}
    assert counters.keys() == set(book.definition.names)
    assert {(f.rows, f.mismatches, f.defaulted) for f in counters.values()} == {(len(day) - 12, 0, 12)}
    shifted = [replace(row, time=row.time + 3600 * SECOND) for row in LOG]  # another past gives other counters
    shutil.rmtree(tmp_path / "later")
    write_clean(tmp_path / "later", [*sorted(shifted, key=lambda r: r.time), *day], SCHEMA)
    other = measure_skew(tmp_path / "log", counted.store, clean_dir=tmp_path / "later")
    assert np.sum([f.mismatches for f in other.fields if f.name in counters]) > 0
