"""Served features are brought up to date from a later log, in a real Redis, and the store's folder stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from feature_repo.readback import online_rows, same_value
from feature_repo.refresh import Refresh, refresh
from feature_repo.store import build, ensure_online, open_store, quiet
from tests.features import redis_server
from tests.features.conftest import SCHEMA, Row, make_rows, write_clean
from thinktwice.data.feature_tables import TableSpec, build_feature_tables, table_specs
from thinktwice.errors import DataError, FeatureStoreError
from thinktwice.files import read_json
from thinktwice.release.feature_store import REDIS_ADDRESS
from thinktwice.schema import parse_schema

pytestmark = [
    pytest.mark.server,
    # Feast's own, on import and in its calls of pandas and protobuf.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SPECS = table_specs(parse_schema(SCHEMA, where="test"))
ROWS = make_rows(num_rows=160)
CUT = ROWS[90]["event_time"]  # of the served model's log: within a day
END = CUT + timedelta(days=2, hours=3)  # the scheduled time


@pytest.fixture(scope="module", autouse=True)
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with redis_server.running(tmp_path_factory.mktemp("redis")) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv(REDIS_ADDRESS, address)
        yield


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The store of a model that was trained on the rows before ``CUT``, in a project of the test's own."""
    log = write_clean(tmp_path / "first", SCHEMA, [row for row in ROWS if row["event_time"] < CUT])
    build(log.folder, tmp_path / "store", feature_version=f"v-{hash(request.node.name) % 10**8}", online="redis")
    return tmp_path / "store"


def later(folder: Path, rows: list[Row] = ROWS, until: datetime = END) -> Path:
    return write_clean(folder / "later", SCHEMA, [row for row in rows if row["event_time"] < until]).folder


def expected(clean: Path, folder: Path, spec: TableSpec, end: datetime) -> dict[str, dict[str, Any]]:
    """The latest row of every key before ``end``, by polars."""
    build_feature_tables(clean, folder, parse_schema(SCHEMA, where="test"))
    table = pl.read_parquet(folder / f"{spec.name}.parquet").filter(pl.col("event_timestamp") < end)
    latest = table.sort("event_timestamp").group_by(spec.key, maintain_order=True).last()
    return {row[spec.key]: row for row in latest.to_dicts()}


def read(folder: Path, spec: TableSpec, keys: list[str]) -> list[tuple[Any, ...]]:
    with open_store(folder) as opened, quiet():
        return [row.values for row in online_rows(opened, spec, keys)]


def assert_online(store: Path, clean: Path, folder: Path, end: datetime) -> None:
    for spec in SPECS:
        rows = expected(clean, folder, spec, end)
        for key, values in zip(rows, read(store, spec, list(rows)), strict=True):
            for name, value in zip(spec.features, values, strict=True):
                assert same_value(rows[key][name], value), (spec.name, key, name)


def test_the_online_values_are_those_of_the_later_log_before_the_scheduled_time(store: Path, tmp_path: Path) -> None:
    files = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    clean = later(tmp_path)
    done = refresh(clean, store, tmp_path / "out", until=END.isoformat())
    assert_online(store, clean, tmp_path / "oracle", END)
    assert Refresh(**{**read_json(tmp_path / "out/refresh.json"), "views": done.views}) == done
    assert done.end == END.isoformat() and [view.name for view in done.views] == [spec.name for spec in SPECS]
    for view, spec in zip(done.views, SPECS, strict=True):
        rows = expected(clean, tmp_path / "oracle", spec, END)
        # The log of the training ended within a day, and its statistics were written for the midnight after it, which is past now.
        assert (view.keys, view.newer) == (len(rows), 0)
        assert view.latest == max(row["event_timestamp"] for row in rows.values()).isoformat()
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == files
    # Once more: the same record, and the same values.
    assert refresh(clean, store, tmp_path / "out", until=END.isoformat()) == done
    assert_online(store, clean, tmp_path / "oracle", END)


def test_both_ends_of_the_window_are_exact(store: Path, tmp_path: Path) -> None:
    clean = later(tmp_path)
    (statistics,) = (spec for spec in SPECS if spec.name == "item_statistics")
    table = pl.read_parquet(
        refresh(clean, store, tmp_path / "all", until=END.isoformat()) and tmp_path / "all/data/item_statistics.parquet"
    )
    at: datetime = table["event_timestamp"].max()  # type: ignore[assignment]
    done = refresh(clean, store, tmp_path / "x", until=at.isoformat(), window_days=1)
    before = table.filter((pl.col("event_timestamp") < at) & (pl.col("event_timestamp") >= at - timedelta(days=1)))
    (view,) = (view for view in done.views if view.name == statistics.name)
    assert (view.keys, view.latest) == (before["item_id"].n_unique(), before["event_timestamp"].max().isoformat())  # type: ignore[union-attr]
    assert datetime.fromisoformat(done.start) == at - timedelta(days=1)


def test_what_others_wrote_later_stays_and_a_deployment_accepts_it(store: Path, tmp_path: Path) -> None:
    clean = later(tmp_path)
    refresh(clean, store, tmp_path / "out", until=END.isoformat())
    now = datetime(2030, 1, 1, tzinfo=timezone.utc)
    pushed = pd.DataFrame(
        {"user_id": ["u1"], "gender": ["pushed"], "event_timestamp": [now], "created_timestamp": [now]}
    )
    with open_store(store) as opened, quiet():
        opened.write_to_online_store("user_attributes", pushed)
    done = refresh(clean, store, tmp_path / "out", until=END.isoformat())
    assert {view.name: view.newer for view in done.views if view.newer} == {"user_attributes": 1}
    assert ensure_online(store) > 0
    (spec,) = (spec for spec in SPECS if spec.name == "user_attributes")
    assert read(store, spec, ["u1"]) == [("pushed",)]


def test_what_cannot_be_refreshed_is_named(store: Path, tmp_path: Path) -> None:
    clean = later(tmp_path)
    other = write_clean(tmp_path / "other", SCHEMA.replace("length: 5", "length: 6"), ROWS).folder
    for arguments, kind, words in (
        ((other, store), FeatureStoreError, "another schema than the served features"),
        ((clean, tmp_path / "none"), FeatureStoreError, "is not a feature store"),
        ((clean, store, ROWS[0]["event_time"].isoformat()), DataError, "which is not before .*nothing to write"),
        ((clean, store, "yesterday"), DataError, "'yesterday' is not a time"),
    ):
        with pytest.raises(kind, match=words):
            refresh(arguments[0], arguments[1], tmp_path / "out", until=(*arguments[2:], "")[0])
        assert not (tmp_path / "out").exists()
    build(clean, tmp_path / "sqlite", feature_version="x")
    with pytest.raises(FeatureStoreError, match="which never changes: train with --online-store redis"):
        refresh(clean, tmp_path / "sqlite", tmp_path / "out")
