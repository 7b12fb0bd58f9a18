"""Side tables: attributes that are in a file of their own count as if each row of the log repeated them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.shop_tables import SCHEMA, START, TABLES, Row, impressions, items, prepared, repeated, users, written
from thinktwice.cli import main
from thinktwice.data.ingest import ingest
from thinktwice.data.point_in_time import training_rows
from thinktwice.errors import DataError, SchemaError, ThinktwiceError
from thinktwice.files import read_json
from thinktwice.schema import load_schema
from thinktwice.validate.profile import profile_log
from thinktwice.validate.side_tables import clean_table, quarantined_table
from thinktwice.validate.split import split_log


def columns(clean: Path) -> dict[str, list[Any]]:
    return training_rows(clean, load_schema(clean / "schema.yaml")).to_pydict()


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_attributes_of_tables_are_those_of_a_log_that_repeats_them(kind: str, tmp_path: Path) -> None:
    clean, split = prepared(tmp_path / "tables", impressions(), users(), items())
    for rows, name in ((users(), f"users.{kind}"), (items(), f"items.{kind}")):
        written(tmp_path / "tables", rows, name)
    tables = f"tables: {{users: {{path: users.{kind}}}, items: {{path: items.{kind}}}}}"
    clean, split = prepared(tmp_path / "tables", impressions(), users(), items(), tables)
    plain, _ = prepared(tmp_path / "plain", repeated(impressions(), users(), items()), users(), items(), "")
    assert split.rows_quarantined == 0 and split.notes.keys() <= {"time:zone"}
    with_tables, with_rows = columns(clean), columns(plain)
    assert with_tables == {name: with_rows[name] for name in with_tables} and with_tables.keys() == with_rows.keys()
    logged = set(pl.read_parquet_schema(clean / "clean.parquet"))
    assert not logged & {"gender", "color", "price", "look", "title"}
    profiled, expected = profile_log(clean).table, profile_log(plain).table
    assert profiled.drop("distinct").equals(expected.drop("distinct"))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.integers(0, 4), st.integers(-30, 90)), unique=True, min_size=1, max_size=12),
    data=st.data(),
)
def test_attributes_are_those_valid_at_the_impression(
    changes: list[tuple[int, int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = [
        {
            "item": item,
            "since": (START + timedelta(hours=at)).isoformat(),
            "name": "x",
            "color": "red",
            "price": float(n),
            "look": [0.0, 0.0],
        }
        for n, (item, at) in enumerate(changes)
    ]
    log = [{**row, "item": data.draw(st.integers(0, 4))} for row in impressions(20)]
    tables = "tables: {users: {path: users.csv}, items: {path: items.parquet, valid_from: since}}"
    clean, split = prepared(tmp_path_factory.mktemp("valid"), log, users(), table, tables)
    read = {row["row_id"]: row for row in training_rows(clean, load_schema(clean / "schema.yaml")).to_pylist()}
    assert len(read) == len(log)
    unmatched = 0
    for row in read.values():
        at = (row["event_time"] - START) / timedelta(hours=1)
        known = [(since, n) for n, (item, since) in enumerate(changes) if str(item) == row["item"] and since <= at]
        assert row["price"] == (float(max(known)[1]) if known else None)
        unmatched += not known
    assert split.notes.get("items:unmatched", 0) == unmatched


def test_a_key_without_a_row_is_missing_and_counted(tmp_path: Path) -> None:
    clean, split = prepared(tmp_path / "a", impressions(), users()[1:], items()[:-2])
    rows = columns(clean)
    assert split.notes["users:unmatched"] == rows["user"].count("u0") == rows["gender"].count(None) == 12
    assert split.notes["items:unmatched"] == rows["price"].count(None) > 0


def test_rows_that_break_a_rule_are_quarantined_with_their_proof(tmp_path: Path) -> None:
    broken = [*items(), {"item": 11, "name": None, "color": "pink", "price": -1.0, "look": [1.0]}]
    broken[3]["color"] = "green"
    people = [*users(), {"user": None, "gender": "f"}]
    clean, split = prepared(tmp_path / "a", impressions(), people, broken)
    table = split.tables["item"]
    assert (table.rows_in, table.rows_clean, table.rows_quarantined) == (12, 10, 2)
    assert table.key_hash_in == table.key_hash_out
    assert table.reasons == {"items.color:allowed": 2, "items.price:minimum": 1, "items.look:vector": 1}
    assert table.examples["items.color:allowed"] == "'green'"
    assert (
        split.tables["user"].reasons == {"users.user:missing": 1}
        and "users.user:missing" in split.tables["user"].reasons
    )
    kept = pl.read_parquet(quarantined_table(tmp_path / "a" / "quarantine", "item"))
    assert kept["item"].to_list() == [3, 11] and kept["color"].to_list() == ["green", "pink"]
    assert kept["reasons"].to_list()[0] == ["items.color:allowed"]
    assert 3 not in pl.read_parquet(clean_table(clean, "item"))["item"].cast(pl.Int64).to_list()
    assert read_json(clean / "clean.json")["tables"]["item"]["rows_quarantined"] == 2
    assert split.notes["items:unmatched"] == columns(clean)["item"].count("3")


def test_a_replay_reads_the_tables_kept_in_the_quarantine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = impressions()
    log[4]["bought"] = 7
    folder = tmp_path / "a"
    prepared(folder, log, users(), items())
    mended = SCHEMA.replace("TABLES", TABLES).replace("{column: bought}", "{column: bought, threshold: 1}")
    (folder / "mended.yaml").write_text(mended)
    command = ["data", "replay", "--quarantine", str(folder / "quarantine"), "--out", str(folder / "again")]
    assert main([*command, "--schema", str(folder / "mended.yaml")]) == 0
    assert "1 are clean now" in capsys.readouterr().out
    again = ingest("parquet", folder / "again" / "clean", None, folder / "raw2")
    assert again.rows == 1 and again.tables == {"users": 5, "items": 11}
    split_log(folder / "raw2", folder / "clean2", folder / "quarantine2", run_id="test")
    assert columns(folder / "clean2")["gender"] == ["f"]


def test_a_raw_log_folder_keeps_its_tables(tmp_path: Path) -> None:
    clean, _ = prepared(tmp_path / "a", impressions(), users(), items())
    for name in ("users.csv", "items.parquet", "log.csv"):
        (tmp_path / "a" / name).unlink()
    ingest("parquet", tmp_path / "a" / "raw", None, tmp_path / "raw2")
    split_log(tmp_path / "raw2", tmp_path / "clean2", tmp_path / "quarantine2", run_id="test")
    first, second = columns(clean), columns(tmp_path / "clean2")
    assert {k: v for k, v in first.items() if k != "row_id"}.keys() == {k for k in second if k != "row_id"}
    assert first["price"] == second["price"] and first["title"] == second["title"]


def test_the_snapshot_depends_on_the_content_of_the_tables_and_not_on_their_place(tmp_path: Path) -> None:
    ids = []
    for name, table in (("a", items()), ("b", items()), ("c", [*items(), {**items()[0], "item": 99}])):
        prepared(tmp_path / name, impressions(), users(), table)
        ids.append(read_json(tmp_path / name / "raw" / "snapshot.json")["snapshot_id"])
    assert ids[0] == ids[1] != ids[2]


def twice(rows: list[Row], **change: Any) -> list[Row]:
    return [*rows, {**rows[2], **change}]


@pytest.mark.parametrize(
    ("of_items", "tables", "words"),
    [
        (twice(items()), TABLES, ("items.parquet", "item '2'", "rows 3, 12", "valid_from")),
        (
            [{**row, "since": "2024-03-01"} for row in twice(items(), price=3.0)],
            "tables: {users: {path: users.csv}, items: {path: items.parquet, valid_from: since}}",
            ("items.parquet", "item '2'", "overlaps"),
        ),
        (items()[:0], TABLES, ("items", "no rows")),
        ([{"sku": 1, "color": "red"}], TABLES, ("items.parquet", "wants column 'item'", "sku")),
        (
            [{"item": 1, "colour": "red", "price": 1.0, "look": [1.0, 2.0], "name": "x"}],
            TABLES,
            ("'color'", "did you mean 'colour'"),
        ),
        (items(), "tables: {users: {path: users.csv}, items: {path: nowhere.csv}}", ("table of items", "nowhere.csv")),
        (
            items(),
            "tables: {users: {path: users.csv}, items: {path: items.parquet, valid_from: since}}",
            ("items.parquet", "valid_from wants column 'since'"),
        ),
    ],
)
def test_tables_that_cannot_be_used_are_refused_in_one_sentence(
    of_items: list[Row], tables: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ThinktwiceError) as caught:
        if of_items:
            prepared(tmp_path / "a", impressions(), users(), of_items, tables)
        else:
            prepared(tmp_path / "a", impressions(), users(), items(), tables)
            pl.DataFrame(items()).clear().write_parquet(tmp_path / "a" / "items.parquet")
            ingest("log", tmp_path / "a" / "log.csv", tmp_path / "a" / "s.yaml", tmp_path / "a" / "raw2")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "a" / "raw2").exists()


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        ("tables: {items: {path: i.csv, valid_from: {column: a, zone: Nowhere}}}", "Nowhere"),
        ("tables: {item: {path: i.csv}}", "did you mean 'items'"),
        ("tables: {items: {}}", "path"),
    ],
)
def test_wrong_descriptions_of_tables_are_named(tables: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCHEMA.replace("TABLES", tables))
    with pytest.raises(SchemaError, match=word):
        load_schema(tmp_path / "s.yaml")


def test_a_table_without_fields_or_entity_is_refused(tmp_path: Path) -> None:
    text = "name: a\ntime: {format: order}\nentities: {item: {key: i}}\nfields: [{name: x}]\ntables: "
    for tables, word in (("{items: {path: a}}", "no field"), ("{users: {path: a}}", "entities.user")):
        (tmp_path / "s.yaml").write_text(text + tables)
        with pytest.raises(SchemaError, match=word):
            load_schema(tmp_path / "s.yaml")


def test_a_broken_line_of_a_table_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    prepared(folder, impressions(), users(), items())
    (folder / "users.csv").write_text("user,gender\nu0,f\nu1,m,extra\nu2,f\n")
    snapshot = ingest("log", folder / "log.csv", folder / "s.yaml", folder / "raw2")
    assert sum(snapshot.side_unparsable.values()) == 1 and snapshot.tables["users"] == 2
    lost = pl.read_parquet(folder / "raw2" / "side_unparsable.parquet")
    assert lost["raw"].to_list() == ["u1,m,extra"] and "users.csv" in lost["file"][0]


def test_a_missing_table_in_a_raw_log_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    prepared(folder, impressions(), users(), items())
    (folder / "raw" / "items.parquet").unlink()
    with pytest.raises(DataError, match=r"items\.parquet is missing"):
        split_log(folder / "raw", folder / "clean2", folder / "quarantine2", run_id="test")
