"""Change-point tables against features computed by their definition."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.features import oracle
from tests.features.conftest import SCHEMA, CleanLog, Row, make_rows
from thinktwice.data import sequences
from thinktwice.data.feature_tables import build_feature_tables, feature_service_name, table_specs
from thinktwice.errors import DataError
from thinktwice.schema import parse_schema

BOTH = "entities: {user: {key: user_id}, item: {key: item_id}}\n"
WriteLog = Callable[[str, list[Row]], CleanLog]


@pytest.fixture(scope="module")
def tables(clean_log: CleanLog, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("tables")
    written = build_feature_tables(clean_log.folder, out, clean_log.schema)
    content = {name: pl.read_parquet(out / f"{name}.parquet").to_dicts() for name in written.rows}
    assert {name: len(rows) for name, rows in content.items()} == written.rows
    assert written.start == clean_log.rows[0]["event_time"]
    last = clean_log.rows[-1]["event_time"]
    assert written.end == datetime(last.year, last.month, last.day, tzinfo=timezone.utc) + timedelta(days=1)
    return content


def test_tables_follow_from_the_schema(clean_log: CleanLog) -> None:
    specs = {s.name: (s.entity, s.key, s.features) for s in table_specs(clean_log.schema)}
    assert specs == {
        "user_attributes": ("user", "user_id", ("gender",)),
        "item_attributes": ("item", "item_id", ("genre", "price", "picture")),
        "user_statistics": ("user", "user_id", clean_log.schema.statistic_names("user")),
        "item_statistics": ("item", "item_id", clean_log.schema.statistic_names("item")),
        "user_sequences": ("user", "user_id", ("last_clicks", "last_genres")),
    }


@pytest.mark.parametrize("entity", ["user", "item"])
def test_statistics_equal_their_definition_at_every_row(
    tables: dict[str, list[dict[str, Any]]], clean_log: CleanLog, entity: str
) -> None:
    key = {"user": "user_id", "item": "item_id"}[entity]
    names = clean_log.schema.statistic_names(entity)  # type: ignore[arg-type]
    found = 0
    for row in clean_log.rows:
        if row[key] is None:
            continue
        got = oracle.as_of(tables[f"{entity}_statistics"], key, row[key], row["event_time"])
        expected = oracle.statistics(clean_log.rows, clean_log.schema, entity, row[key], row["event_time"])
        if expected is None:
            assert got is None
        else:
            assert got is not None
            assert [got[n] for n in names] == pytest.approx(expected, abs=1e-12)
            found += 1
    assert found > 200


def test_a_window_empties_when_its_last_day_leaves(write_log: WriteLog, tmp_path: Path) -> None:
    rows = make_rows(num_rows=2)
    rows[0].update(user_id="once", event_time=datetime(2024, 3, 1, 23, 59, 59, tzinfo=timezone.utc), label=1)
    rows[1].update(user_id="later", event_time=datetime(2024, 3, 12, 12, tzinfo=timezone.utc), label=0)
    log = write_log(SCHEMA, rows)
    build_feature_tables(log.folder, tmp_path / "out", log.schema)
    table = pl.read_parquet(tmp_path / "out/user_statistics.parquet").filter(pl.col("user_id") == "once")
    assert [(t.day, t.hour) for t in table["event_timestamp"]] == [(2, 0), (4, 0), (9, 0)]
    assert table["user_views_2d"].to_list() == [1.0, 0.0, 0.0]
    assert table["user_views_7d"].to_list() == [1.0, 1.0, 0.0]
    assert table["user_views_all"].to_list() == [1.0, 1.0, 1.0]
    assert table["user_rate_all"].to_list() == pytest.approx([(1 + 20 * 1.0) / 21] * 3)


def test_nothing_is_valid_before_what_it_counts(tables: dict[str, list[dict[str, Any]]], clean_log: CleanLog) -> None:
    clicks = {(r["user_id"], r["event_time"]) for r in clean_log.rows}
    for row in tables["user_sequences"]:
        assert (row["user_id"], row["event_timestamp"] - timedelta(microseconds=1)) in clicks
    for name in ("user_statistics", "item_statistics"):
        assert all(r["event_timestamp"].time() == datetime.min.time() for r in tables[name])
        assert max(r["event_timestamp"] for r in tables[name]) <= clean_log.rows[-1]["event_time"] + timedelta(days=1)
    assert all(r["created_timestamp"] == r["event_timestamp"] for rows in tables.values() for r in rows)


@pytest.mark.parametrize("batch_rows", [1, 7, 100_000])
def test_sequences_equal_their_definition_for_any_batch_size(
    clean_log: CleanLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    monkeypatch.setattr(sequences, "BATCH_ROWS", batch_rows)
    build_feature_tables(clean_log.folder, tmp_path, clean_log.schema)
    table = pl.read_parquet(tmp_path / "user_sequences.parquet").to_dicts()
    assert len({(r["user_id"], r["event_timestamp"]) for r in table}) == len(table)
    for row in table:
        for name in ("last_clicks", "last_genres"):
            expected = oracle.sequence(clean_log.rows, clean_log.schema, name, row["user_id"], row["event_timestamp"])
            assert row[name] == expected
    changing = {
        (r["user_id"], r["event_time"])
        for r in clean_log.rows
        if r["user_id"] is not None and (r["label"] == 1 or r["genre"] is not None)
    }
    assert len(table) == len(changing)


def test_a_long_history_survives_batches_of_other_instants(
    write_log: WriteLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "BATCH_ROWS", 2048)
    rows = make_rows(num_rows=6000)
    log = write_log(SCHEMA, [{**r, "user_id": "one"} for r in rows])
    build_feature_tables(log.folder, tmp_path / "out", log.schema)
    table = pl.read_parquet(tmp_path / "out/user_sequences.parquet").to_dicts()
    for row in table[:: max(1, len(table) // 60)]:
        assert row["last_clicks"] == oracle.sequence(log.rows, log.schema, "last_clicks", "one", row["event_timestamp"])


def test_attributes_hold_the_latest_seen_values(tables: dict[str, list[dict[str, Any]]], clean_log: CleanLog) -> None:
    for row in clean_log.rows:
        later_at_same_instant = [
            r for r in clean_log.rows if r["item_id"] == row["item_id"] and r["event_time"] == row["event_time"]
        ]
        expected = max(later_at_same_instant, key=lambda r: r["row_id"])
        got = oracle.as_of(tables["item_attributes"], "item_id", row["item_id"], row["event_time"])
        assert got is not None
        assert [got[c] for c in ("genre", "price", "picture")] == [expected[c] for c in ("genre", "price", "picture")]
    assert len(tables["item_attributes"]) < len(clean_log.rows)
    assert [r["gender"] for r in tables["user_attributes"] if r["user_id"] == "u1"] == [None]


def test_the_same_rows_give_the_same_tables(clean_log: CleanLog, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_feature_tables(clean_log.folder, tmp_path / name, clean_log.schema)
    for spec in table_specs(clean_log.schema):
        a, b = (pl.read_parquet(tmp_path / n / f"{spec.name}.parquet") for n in ("a", "b"))
        assert a.equals(b)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("user", ["user_attributes", "user_statistics"]),
        ("item", ["item_attributes", "item_statistics"]),
        ("sequences", ["user_sequences"]),
        ("statistics and sequences", ["user_sequences", "user_statistics"]),
        ("", []),
    ],
)
def test_logs_with_fewer_entities(write_log: WriteLog, tmp_path: Path, keep: str, expected: list[str]) -> None:
    text = {
        "user": "entities: {user: {key: user_id}}\nfields: [{name: gender, entity: user}, {name: slot}]\nstatistics: {entities: [user]}",
        "item": "entities: {item: {key: item_id}}\nfields: [{name: genre, entity: item}]\nstatistics: {entities: [item]}",
        "sequences": BOTH + "sequences: [{name: before, of: item_id, length: 3}]",
        "statistics and sequences": BOTH
        + "sequences: [{name: before, of: item_id, length: 3}]\nstatistics: {entities: [user]}",
        "": "fields: [{name: slot}]",
    }[keep]
    log = write_log(f"name: small\ntime: {{column: at}}\n{text}", make_rows(num_rows=40))
    written = build_feature_tables(log.folder, tmp_path / "out", log.schema)
    assert sorted(written.rows) == expected
    assert sorted(p.name for p in (tmp_path / "out").glob("*.parquet")) == [f"{e}.parquet" for e in expected]


def test_bad_logs_are_named(write_log: WriteLog, tmp_path: Path) -> None:
    schema = parse_schema(SCHEMA, where="test")
    with pytest.raises(DataError, match="does not exist: run the validation"):
        build_feature_tables(tmp_path / "nowhere", tmp_path / "out", schema)
    log = write_log(SCHEMA, [])
    with pytest.raises(DataError, match="contains no rows"):
        build_feature_tables(log.folder, tmp_path / "out", schema)
    (log.folder / "clean.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="cannot be read"):
        build_feature_tables(log.folder, tmp_path / "out", schema)


def test_a_log_with_nothing_to_look_up_names_no_feature_service() -> None:
    keys_only = parse_schema(
        "{name: k, time: {column: t}, entities: {user: {key: u}, item: {key: i}}, fields: [{name: slot}]}", where="test"
    )
    with_view = parse_schema(
        "{name: k, time: {column: t}, entities: {user: {key: u}}, fields: [{name: age, entity: user}]}", where="test"
    )
    assert feature_service_name(keys_only, "k-1.2") == ""
    assert feature_service_name(with_view, "k-1.2") == "ctr_k_1_2"
