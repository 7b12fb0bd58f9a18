"""Point-in-time rows: nothing lost, nothing reordered, nothing from the future."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from feature_repo import retrieve
from feature_repo.leaks import assert_no_leak, side_rows
from feature_repo.store import build, open_store, quiet, read_info
from feature_repo.tables_engine import feast_engine
from tests.data.shop_tables import prepared, users
from tests.features import oracle
from tests.features.conftest import SCHEMA, START, CleanLog, Row, make_rows
from thinktwice.data.feature_tables import build_feature_tables, table_specs
from thinktwice.data.point_in_time import clean_rows, training_rows
from thinktwice.errors import DataError, FeatureStoreError, RowsLostError
from thinktwice.schema import load_schema

pytestmark = [
    # Feast's own, on import and in its calls of pandas and dask.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
WriteLog = Callable[[str, list[Row]], CleanLog]


@pytest.fixture(scope="module")
def store_dir(clean_log: CleanLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieve") / "store"
    build(clean_log.folder, folder, feature_version="v1")
    return folder


@pytest.fixture(scope="module")
def joined(clean_log: CleanLog, store_dir: Path) -> pa.Table:
    return retrieve.training_set(clean_log.folder, store_dir)


def test_rows_stay_as_they_were(joined: pa.Table, clean_log: CleanLog) -> None:
    assert joined["row_id"].to_pylist() == [r["row_id"] for r in clean_log.rows]
    assert joined["title"].to_pylist() == [r["title"] for r in clean_log.rows]
    assert joined["label"].to_pylist() == [r["label"] for r in clean_log.rows]
    assert {f.name for f in clean_log.schema.model_fields_in_order()} <= set(joined.column_names)


def test_features_equal_their_definition(joined: pa.Table, clean_log: CleanLog) -> None:
    rows, schema = clean_log.rows, clean_log.schema
    for got in joined.to_pylist():
        at = got["event_time"]
        for entity, key in (("user", got["user_id"]), ("item", got["item_id"])):
            names = schema.statistic_names(entity)  # type: ignore[arg-type]
            expected = None if key is None else oracle.statistics(rows, schema, entity, key, at)
            if expected is None:
                assert [got[n] for n in names] == [None] * len(names)
            else:
                assert [got[n] for n in names] == pytest.approx(expected, abs=1e-12)
        for name in ("last_clicks", "last_genres"):
            wanted = [] if got["user_id"] is None else oracle.sequence(rows, schema, name, got["user_id"], at)
            assert (got[name] or []) == wanted
        assert got["user_id"] is not None or got["gender"] is None


@pytest.mark.parametrize(("segment_rows", "chunk_rows"), [(1, 64), (3, 1000), (10_000, 100_000)])
def test_segments_and_chunks_do_not_change_the_answer(
    joined: pa.Table,
    clean_log: CleanLog,
    store_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    segment_rows: int,
    chunk_rows: int,
) -> None:
    monkeypatch.setattr(retrieve, "SEGMENT_ROWS", segment_rows)
    monkeypatch.setattr(retrieve, "CHUNK_ROWS", chunk_rows)
    assert retrieve.training_set(clean_log.folder, store_dir).equals(joined)


def plain_join(store_dir: Path, folder: Path, rows: pa.Table, offline: str) -> pa.Table:
    """Feast's join on the whole tables, without any of our preparation."""
    shutil.copytree(store_dir, folder)
    config = yaml.safe_load((folder / "feature_store.yaml").read_text())
    config["offline_store"]["type"] = offline
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    with open_store(folder) as store, feast_engine(folder), quiet():
        return retrieve.point_in_time(store, "ctr_v1", retrieve.entity_rows(rows))


def test_the_answer_is_that_of_the_plain_join(
    joined: pa.Table, clean_log: CleanLog, store_dir: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(clean_log.folder / "clean.parquet", columns=["row_id", "event_time", "user_id", "item_id"])
    plain = retrieve.in_order(rows["row_id"], plain_join(store_dir, tmp_path / "plain", rows, "duckdb"))
    names = [c for c in plain.column_names if c not in ("row_id", "event_timestamp", "user_id", "item_id")]
    assert len(names) > 15
    for name in names:
        assert plain[name].to_pylist() == joined[name].to_pylist(), name


def test_the_file_store_loses_slate_rows_and_the_check_sees_it(store_dir: Path, tmp_path: Path) -> None:
    at = START + timedelta(days=3)
    slate = pa.table(
        {
            "row_id": [f"{n:016x}" for n in range(10)],
            "event_time": pa.array([at] * 10, pa.timestamp("us", tz="UTC")),
            "user_id": ["u1"] * 10,
            "item_id": [f"i'{n}" for n in range(10)],
        }
    )
    kept = plain_join(store_dir, tmp_path / "duckdb", slate, "duckdb")
    assert retrieve.in_order(slate["row_id"], kept)["row_id"].to_pylist() == slate["row_id"].to_pylist()
    lost = plain_join(store_dir, tmp_path / "file", slate, "file")
    assert lost.num_rows < 10
    with pytest.raises(RowsLostError, match=f"returned {lost.num_rows} of 10 rows"):
        retrieve.in_order(slate["row_id"], lost)


def test_a_swapped_or_repeated_row_is_seen() -> None:
    ids = pa.chunked_array([["a", "b", "c"]])
    assert retrieve.in_order(ids, pa.table({"row_id": ["c", "a", "b"], "x": [3, 1, 2]}))["x"].to_pylist() == [1, 2, 3]
    with pytest.raises(RowsLostError, match="lost 1 rows, the first is row_id 'b'"):
        retrieve.in_order(ids, pa.table({"row_id": ["a", "c", "c"]}))
    with pytest.raises(RowsLostError, match="repeats a row_id"):
        retrieve.in_order(pa.chunked_array([["a", "a"]]), pa.table({"row_id": ["a", "a"]}))


def test_late_data_is_not_seen_before_it_was_created(clean_log: CleanLog, store_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(store_dir, tmp_path / "late")
    path = tmp_path / "late/data/item_attributes.parquet"
    table = pl.read_parquet(path)
    late = table.with_columns(
        pl.lit("late").alias("genre"),
        pl.col("event_timestamp") + pl.duration(seconds=1),
        pl.col("created_timestamp") + pl.duration(days=2),
    )
    pl.concat([table, late]).write_parquet(path)
    plain_rows = pq.read_table(
        clean_log.folder / "clean.parquet", columns=["row_id", "event_time", "user_id", "item_id"]
    )
    # Not `training_set`: it refuses attributes that are not those of the clean log.
    info, specs = read_info(tmp_path / "late"), table_specs(clean_log.schema)
    features = retrieve.features_at(plain_rows, tmp_path / "late", info, specs)
    got = [a | b for a, b in zip(plain_rows.to_pylist(), features.to_pylist(), strict=True)]
    plain = plain_join(tmp_path / "late", tmp_path / "plain", plain_rows, "duckdb")
    assert [r["genre"] for r in got] == retrieve.in_order(plain_rows["row_id"], plain)["genre"].to_pylist()
    first = {}
    for row in got:
        first.setdefault(row["item_id"], row["event_time"])
    early = [r for r in got if r["event_time"] < first[r["item_id"]] + timedelta(days=2)]
    assert early and all(r["genre"] != "late" for r in early)
    assert any(r["genre"] == "late" for r in got)


def shifted(store_dir: Path, folder: Path, table: str, by: timedelta) -> Path:
    """A copy of the store whose table says its rows were valid earlier than they were."""
    shutil.copytree(store_dir, folder)
    path = folder / f"data/{table}.parquet"
    earlier = [(pl.col(c) - by).alias(c) for c in ("event_timestamp", "created_timestamp")]
    pl.read_parquet(path).with_columns(earlier).write_parquet(path)
    return folder


@pytest.mark.parametrize(
    ("table", "by", "feature"),
    [
        ("item_statistics", timedelta(days=1), "item_"),
        ("user_statistics", timedelta(days=1), "user_"),
        ("user_sequences", timedelta(microseconds=1), "last_"),
    ],
)
def test_a_planted_leak_is_caught(
    clean_log: CleanLog, store_dir: Path, tmp_path: Path, table: str, by: timedelta, feature: str
) -> None:
    leaky = shifted(store_dir, tmp_path / "leaky", table, by)
    with pytest.raises(FeatureStoreError, match=f"feature '{feature}.*known strictly before"):
        retrieve.training_set(clean_log.folder, leaky)


@pytest.mark.parametrize(("column", "value"), [("price", 7.0), ("genre", "other"), ("gender", "x"), ("picture", [1.0])])
def test_attributes_that_are_not_those_of_the_log_are_caught(
    joined: pa.Table, clean_log: CleanLog, column: str, value: object
) -> None:
    clean = pq.read_table(clean_log.folder / "clean.parquet")
    place = joined.column_names.index(column)
    wrong = joined.set_column(place, column, pa.array([value] * joined.num_rows, joined[column].type))
    with pytest.raises(FeatureStoreError, match=f"feature '{column}' of row .* in the clean log has .*: materialize"):
        assert_no_leak(wrong, clean, clean_log.schema)


def test_a_rate_with_the_rows_own_click_is_caught(joined: pa.Table, clean_log: CleanLog) -> None:
    clean = pq.read_table(clean_log.folder / "clean.parquet")
    assert assert_no_leak(joined, clean, clean_log.schema, sample_rows=100) == 100 * (6 + 6 + 2 + 4)
    rate = pl.Series(joined["item_rate_all"].to_pylist(), dtype=pl.Float64)
    own = rate + (pl.Series(joined["label"].to_pylist()) - rate) / 1000
    column = joined.column_names.index("item_rate_all")
    leaky = joined.set_column(column, "item_rate_all", pa.array(own.to_list(), pa.float64()))
    with pytest.raises(FeatureStoreError, match="'item_rate_all' of row"):
        assert_no_leak(leaky, clean, clean_log.schema)


def test_a_rows_own_label_does_not_move_its_features(
    joined: pa.Table, clean_log: CleanLog, store_dir: Path, write_log: WriteLog, tmp_path: Path
) -> None:
    number = 300
    rows: list[dict[str, Any]] = [dict(r) for r in clean_log.rows]
    rows[number]["label"] = 1 - rows[number]["label"]
    flipped = write_log(SCHEMA, rows)
    shutil.copytree(store_dir, tmp_path / "store")
    build_feature_tables(flipped.folder, tmp_path / "store/data", flipped.schema)
    got = retrieve.training_set(flipped.folder, tmp_path / "store")
    before, after = joined.slice(number, 1).to_pylist()[0], got.slice(number, 1).to_pylist()[0]
    assert before.pop("label") != after.pop("label")
    assert before == after
    assert got.slice(number + 1).drop_columns(["label"]) != joined.slice(number + 1).drop_columns(["label"])


def test_a_log_without_entities_passes_through(write_log: WriteLog, tmp_path: Path) -> None:
    log = write_log(
        "name: small\ntime: {column: at}\nfields: [{name: slot}, {name: hour, derived: hour}]", make_rows(num_rows=30)
    )
    build(log.folder, tmp_path / "store", feature_version="v")
    assert retrieve.training_set(log.folder, tmp_path / "store").equals(pq.read_table(log.folder / "clean.parquet"))


@pytest.mark.parametrize("entity", ["user", "item"])
def test_a_log_with_one_entity(write_log: WriteLog, tmp_path: Path, entity: str) -> None:
    text = f"name: small\ntime: {{column: at}}\nentities: {{{entity}: {{key: {entity}_id}}}}\nstatistics: {{entities: [{entity}]}}"
    log = write_log(text, make_rows(num_rows=120))
    build(log.folder, tmp_path / "store", feature_version="v")
    table = retrieve.training_set(log.folder, tmp_path / "store")
    assert table.num_rows == 120
    assert table[f"{entity}_views_all"].null_count < 120


def test_misfits_are_named(clean_log: CleanLog, store_dir: Path, write_log: WriteLog, tmp_path: Path) -> None:
    other = write_log(SCHEMA.replace("windows_days: [2, 7, 0]", "windows_days: [3]"), make_rows(num_rows=30))
    with pytest.raises(FeatureStoreError, match="built for other fields"):
        retrieve.training_set(other.folder, store_dir)
    (tmp_path / "empty").mkdir()
    shutil.copy(clean_log.folder / "schema.yaml", tmp_path / "empty")
    with pytest.raises(DataError, match="run the validation step first"):
        retrieve.training_set(tmp_path / "empty", store_dir)
    with pytest.raises(FeatureStoreError, match="run the materialize step first"):
        retrieve.training_set(clean_log.folder, tmp_path / "nowhere")


@pytest.mark.parametrize("seed", range(3))
def test_the_library_joins_as_feast_does(seed: int, write_log: WriteLog, tmp_path: Path) -> None:
    """Training from Python needs no feature store: the same tables give the same rows, to the last bit."""
    log = write_log(SCHEMA, make_rows(seed=seed, num_rows=300))
    build(log.folder, tmp_path / "store", feature_version="v")
    assert training_rows(log.folder, log.schema).equals(retrieve.training_set(log.folder, tmp_path / "store"))


def test_side_tables_join_as_feast_does(tmp_path: Path) -> None:
    """Attributes of side tables come from the store as they were valid, and the leak check sees those that were not."""
    at = [START + timedelta(hours=n) for n in range(30)]
    items = [
        {
            "item": n % 4,
            "since": at[(n * 7) % 30].isoformat(),
            "name": "x",
            "color": "red",
            "price": float(n),
            "look": [0.5, n / 4],
        }
        for n in range(20)
    ]
    items = list({(row["item"], row["since"]): row for row in items}.values())
    log = [
        {"at": moment.isoformat(), "bought": n % 2, "user": f"u{n % 5}", "item": n % 4, "device": "a"}
        for n, moment in enumerate(at)
    ]
    tables = "tables: {users: {path: users.csv}, items: {path: items.parquet, valid_from: since}}"
    clean, _ = prepared(tmp_path / "log", log, users()[1:], items, tables)
    build(clean, tmp_path / "store", feature_version="v")
    schema = load_schema(clean / "schema.yaml")
    joined = retrieve.training_set(clean, tmp_path / "store")
    assert training_rows(clean, schema).equals(joined)
    assert 0 < joined["price"].null_count < 30 and joined["gender"].null_count == 6
    changed = joined.set_column(joined.column_names.index("price"), "price", pc.add(joined["price"], 1))
    with pytest.raises(FeatureStoreError, match="the table of items has"):
        assert_no_leak(changed, clean_rows(clean, schema), schema, side_rows(clean, schema))
