from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.validate.raw import SHOP, START, broken_shop, row_id, shop_columns, write_raw
from thinktwice.errors import DataError, RowsLostError, SchemaError
from thinktwice.files import read_json
from thinktwice.schema.log import load_schema, parse_schema
from thinktwice.validate import copies, plan, quarantine, raw_rows, split
from thinktwice.validate.layout import clean_columns
from thinktwice.validate.profile_rules import profile_rules
from thinktwice.validate.rules import row_rules, rule_set_version
from thinktwice.validate.split import replay, split_log

AS_OF = datetime.fromtimestamp(START + 20 * 86_400, tz=timezone.utc)


def run(raw: Path, tmp_path: Path, **options: object) -> tuple[split.SplitResult, pl.DataFrame, pl.DataFrame]:
    result = split_log(raw, tmp_path / "clean", tmp_path / "bad", run_id="run-1", **options)  # type: ignore[arg-type]
    return (
        result,
        pl.read_parquet(tmp_path / "clean/clean.parquet"),
        pl.read_parquet(tmp_path / "bad/quarantine.parquet"),
    )


def one_column(tmp_path: Path, values: object, *, kind: str = "categorical", name: str = "field") -> pl.DataFrame:
    schema = f"{{name: t, time: {{format: order}}, label: {{column: y}}, fields: [{{name: {name}, kind: {kind}}}]}}"
    frame = pl.DataFrame({name: values, "y": [0] * len(values)})  # type: ignore[arg-type]
    return run(write_raw(tmp_path / "raw", frame, schema), tmp_path)[1]


def test_every_rule_catches_its_rows_and_no_other(tmp_path: Path) -> None:
    columns, wrong = broken_shop()
    raw = write_raw(tmp_path / "raw", columns, unparsable=("half a li", ""))
    result, clean, bad = run(raw, tmp_path, as_of=AS_OF, ingested_at=AS_OF)

    found: dict[str, list[int]] = {}
    for place, reasons in bad.select("source_row", "reasons").iter_rows():
        for reason in reasons:
            found.setdefault(reason, []).append(place)
    assert {rule: sorted(rows) for rule, rows in found.items()} == wrong
    assert result.reasons == {**{r: len(rows) for r, rows in wrong.items()}, "record:unsplittable": 2}
    every_rule = {r.id for r in row_rules(load_schema(raw / "schema.yaml"))}
    assert set(result.reasons) == every_rule, "the log breaks every rule of its catalogue"

    quarantined = {row for rows in wrong.values() for row in rows}
    assert result.rows_quarantined == len(quarantined) + 2
    assert set(clean["row_id"]) == {row_id(i) for i in range(400) if i not in quarantined}
    assert (result.rows_in, result.rows_clean) == (402, 402 - result.rows_quarantined)
    assert result.key_hash_in == result.key_hash_out


def test_quarantine_keeps_the_original_and_all_reasons(tmp_path: Path) -> None:
    columns, _ = broken_shop()
    raw = write_raw(tmp_path / "raw", columns, unparsable=("half a li",))
    _, _, bad = run(raw, tmp_path, as_of=AS_OF, ingested_at=AS_OF)
    source = pl.read_parquet(raw / "log.parquet").filter(pl.col("row_id").is_in(bad["row_id"].to_list()))
    assert bad.select(source.columns).equals(source)
    assert bad.filter(source_row=14)["reasons"].to_list() == [["label:binary", "price:maximum"]]
    assert bad.columns[-4:] == ["reasons", "rule_set_version", "run_id", "ingested_at"]
    assert bad["run_id"].unique().to_list() == ["run-1"]
    assert bad["ingested_at"].unique().to_list() == [AS_OF]
    unparsable = pl.read_parquet(tmp_path / "bad/unparsable.parquet")
    assert unparsable.select("raw", "reasons").rows() == [("half a li", ["record:unsplittable"])]


def test_clean_log_is_canonical(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", shop_columns(300))
    _, clean, bad = run(raw, tmp_path)
    assert bad.height == 0
    assert clean.columns == clean_columns(load_schema(raw / "schema.yaml"))
    types = pq.read_schema(tmp_path / "clean/clean.parquet")
    assert [str(types.field(n).type) for n in ("row_id", "event_time", "label", "item_id", "price", "title")] == [
        "string",
        "timestamp[us, tz=UTC]",
        "int8",
        "string",
        "double",
        "string",
    ]
    assert str(types.field("image").type).startswith("list<") and "float" in str(types.field("image").type)
    assert clean.select("event_time", "row_id").equals(
        clean.select("event_time", "row_id").sort("event_time", "row_id")
    )
    first = clean.row(0, named=True)
    assert first["event_time"] == datetime.fromtimestamp(START, tz=timezone.utc)
    assert (first["hour"], first["weekday"]) == ("22", "1"), "14 November 2023 was a Tuesday"
    info = read_json(tmp_path / "clean/clean.json")
    assert info["conserved"] and info["rows_in"] == 300 and info["click_rate"] == pytest.approx(1 / 3)


def test_parts_and_chunks_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, _ = broken_shop(30_000)
    raw = write_raw(tmp_path / "raw", columns)
    _, clean, bad = run(raw, tmp_path / "one")
    monkeypatch.setattr(raw_rows, "CHUNK_ROWS", 11_000)
    monkeypatch.setattr(plan, "PART_ROWS", 7_000)
    result, parts, parts_bad = run(raw, tmp_path / "many")
    assert parts.equals(clean) and parts_bad.equals(bad)
    assert result.rows_in == 30_000
    assert sorted(p.name for p in (tmp_path / "many/clean").iterdir()) == ["clean.json", "clean.parquet", "schema.yaml"]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", broken_shop()[0])
    for name in ("a", "b"):
        split_log(raw, tmp_path / name / "clean", tmp_path / name / "bad", run_id="r")
    for file in ("clean/clean.parquet", "clean/clean.json", "bad/quarantine.parquet", "bad/quarantine.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_whole_floats_read_as_integers(tmp_path: Path) -> None:
    assert one_column(tmp_path, [42.0, 42.5, None, float("nan")])["field"].to_list() == ["42", "42.5", None, None]
    assert one_column(tmp_path, [42, None, -1])["field"].to_list() == ["42", None, "-1"]
    assert one_column(tmp_path, [True, False])["field"].to_list() == ["true", "false"]
    assert one_column(tmp_path, ["", "a", " b"])["field"].to_list() == [None, "a", " b"]
    categories = pl.Series(["x", "", "x"], dtype=pl.Categorical)
    assert one_column(tmp_path, categories)["field"].to_list() == ["x", None, "x"]


def test_numbers_of_any_source_type(tmp_path: Path) -> None:
    texts = one_column(tmp_path, ["1", " 2.5 ", "", "-3e2", ".5"], kind="numeric")["field"]
    assert texts.to_list() == [1.0, 2.5, None, -300.0, 0.5]
    assert one_column(tmp_path, [1, None], kind="numeric")["field"].to_list() == [1.0, None]
    assert one_column(tmp_path, [1.5, float("nan")], kind="numeric")["field"].to_list() == [1.5, None]


@pytest.mark.parametrize(
    ("form", "values", "expected"),
    [
        ("s", [1_700_000_000, 1_700_000_001], "2023-11-14T22:13:20"),
        ("s", ["1700000000.25", "1"], "2023-11-14T22:13:20.250000"),
        ("ms", [1_700_000_000_123], "2023-11-14T22:13:20.123000"),
        ("us", [1_700_000_000_123_456], "2023-11-14T22:13:20.123456"),
        ("yymmddhh", [14102107], "2014-10-21T07:00:00"),
        ("yymmddhh", ["14102107"], "2014-10-21T07:00:00"),
        ("datetime", ["2020-02-03 04:05:06"], "2020-02-03T04:05:06"),
        ("datetime", ["2020-02-03T04:05:06.5+02:00"], "2020-02-03T02:05:06.500000"),
        ("datetime", ["2020-02-03T04:05:06Z"], "2020-02-03T04:05:06"),
        ("datetime", ["2020-02-03"], "2020-02-03T00:00:00"),
        ("datetime", [datetime(2020, 2, 3, 4)], "2020-02-03T04:00:00"),
        ("datetime", [datetime(2020, 2, 3, 4, tzinfo=timezone.utc)], "2020-02-03T04:00:00"),
    ],
)
def test_time_formats(tmp_path: Path, form: str, values: list[object], expected: str) -> None:
    schema = f"{{name: t, time: {{column: ts, format: {form}}}, label: {{column: y}}, fields: [{{name: a}}]}}"
    frame = pl.DataFrame({"ts": values, "a": ["x"] * len(values), "y": [1] * len(values)})
    _, clean, bad = run(write_raw(tmp_path / "raw", frame, schema), tmp_path)
    assert bad.height == 0
    assert expected + "+00:00" in [t.isoformat() for t in clean["event_time"]]


def test_order_takes_one_second_a_row_and_knows_no_duplicates(tmp_path: Path) -> None:
    clean = one_column(tmp_path, ["a", "a", "a"])
    assert [t.timestamp() for t in clean["event_time"]] == [0.0, 1.0, 2.0]


def test_label_threshold(tmp_path: Path) -> None:
    schema = "{name: t, time: {format: order}, label: {column: y, threshold: 4}, fields: [{name: a}]}"
    frame = pl.DataFrame({"a": ["x"] * 4, "y": [3.9, 4.0, 5.0, None]})
    result, clean, _ = run(write_raw(tmp_path / "raw", frame, schema), tmp_path)
    assert clean["label"].to_list() == [0, 1, 1]
    assert result.reasons == {"label:missing": 1}


def test_columns_named_like_ours_survive(tmp_path: Path) -> None:
    columns = shop_columns(20)
    columns["reasons"] = ["the user's own"] * 20
    columns["clicked"][0] = "7"
    raw = write_raw(tmp_path / "raw", columns)
    _, _, bad = run(raw, tmp_path)
    assert bad.select("reasons", "quarantine_reasons").rows() == [("the user's own", ["label:binary"])]
    result = replay(tmp_path / "bad", tmp_path / "clean2", tmp_path / "bad2", run_id="again")
    assert result.rows_quarantined == 1


def test_replay_under_newer_rules(tmp_path: Path) -> None:
    columns, wrong = broken_shop()
    raw = write_raw(tmp_path / "raw", columns, unparsable=("x",))
    before, _, _ = run(raw, tmp_path)
    newer = tmp_path / "newer.yaml"
    newer.write_text(SHOP.replace("allowed: [phone, desk]", "allowed: [phone, desk, fridge]").replace("100}", "200}"))
    result = replay(tmp_path / "bad", tmp_path / "clean2", tmp_path / "bad2", run_id="run-2", schema_path=newer)

    rescued = pl.read_parquet(tmp_path / "clean2/clean.parquet")
    assert set(rescued["row_id"]) == {row_id(16), row_id(22)}, "row 14 still breaks the label's rule"
    assert rescued.filter(row_id=row_id(16))["device"].to_list() == ["fridge"]
    assert result.rows_in == before.rows_quarantined
    assert result.rule_set_version != before.rule_set_version
    assert result.reasons["row:duplicate"] == len(wrong["row:duplicate"]), "their first copies are clean already"
    assert result.reasons["record:unsplittable"] == 1
    again = replay(tmp_path / "bad2", tmp_path / "clean3", tmp_path / "bad3", run_id="run-3")
    assert (again.rows_clean, again.rows_quarantined) == (0, result.rows_quarantined)
    source = pl.read_parquet(raw / "log.parquet")
    kept = pl.read_parquet(tmp_path / "bad3/quarantine.parquet").select(source.columns)
    assert kept.equals(source.filter(pl.col("row_id").is_in(kept["row_id"].to_list())))


def test_all_rows_bad_gives_an_empty_clean_log(tmp_path: Path) -> None:
    columns = shop_columns(10)
    columns["clicked"] = ["maybe"] * 10
    result, clean, bad = run(write_raw(tmp_path / "raw", columns), tmp_path)
    assert (clean.height, bad.height, result.rows_clean) == (0, 10, 0)
    assert clean.columns == clean_columns(parse_schema(SHOP, where="test"))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["0", "1", "2", "", "x", None]), min_size=1, max_size=60), st.integers(0, 3))
def test_rows_are_always_conserved(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str | None], extra: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("conserved")
    columns = shop_columns(len(labels))
    columns["clicked"] = list(labels)
    raw = write_raw(tmp_path / "raw", columns, unparsable=tuple("?" * extra))
    result, clean, bad = run(raw, tmp_path)
    good = sum(label in ("0", "1") for label in labels)
    assert (result.rows_clean, result.rows_quarantined) == (good, len(labels) - good + extra)
    assert not set(clean["row_id"]) & set(bad["row_id"])


def test_lost_rows_are_an_error_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_raw(tmp_path / "raw", broken_shop()[0])
    monkeypatch.setattr(quarantine.QuarantineWriter, "write", lambda *_: None)
    with pytest.raises(RowsLostError, match=r"400 rows in, but .* nothing was written"):
        split_log(raw, tmp_path / "clean", tmp_path / "bad", run_id="r")
    assert not (tmp_path / "clean").exists() and not (tmp_path / "bad").exists()


def test_a_schema_that_does_not_fit(tmp_path: Path) -> None:
    columns = shop_columns(5)
    del columns["uid"]
    with pytest.raises(
        SchemaError, match=r"schema 'shop' does not fit .*user id wants column 'uid'.*The columns are: iid"
    ):
        run(write_raw(tmp_path / "a", columns), tmp_path)
    columns = shop_columns(5)
    columns["device"] = [["phone"]] * 5
    with pytest.raises(
        SchemaError, match=r"column 'device' of .* has type .*list.*, from which the field 'device' cannot"
    ):
        run(write_raw(tmp_path / "b", columns), tmp_path)
    columns = shop_columns(5)
    columns["image"] = [1.0] * 5
    with pytest.raises(
        SchemaError, match=r"column 'image' of .* has type double, from which the vector 'image' cannot be read: lists"
    ):
        run(write_raw(tmp_path / "c", columns), tmp_path)


def test_logs_that_cannot_be_read(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", shop_columns(2_000))
    whole = (raw / "log.parquet").read_bytes()
    (raw / "log.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable parquet file"):
        run(raw, tmp_path)
    (raw / "log.parquet").unlink()
    with pytest.raises(DataError, match="is missing: ingest the log again"):
        run(raw, tmp_path)
    empty = pl.DataFrame(shop_columns(1)).clear()
    with pytest.raises(DataError, match="contains no row"):
        run(write_raw(tmp_path / "empty", empty), tmp_path)


def test_row_ids_must_tell_rows_apart(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", shop_columns(5))
    log = pl.read_parquet(raw / "log.parquet")
    for ids, message in (
        ([row_id(0)] * 5, "share one row_id"),
        (["zz"] * 5, "16 hex digits"),
        (["z" * 16] * 5, "16 hex"),
    ):
        log.with_columns(row_id=pl.Series(ids)).write_parquet(raw / "log.parquet")
        with pytest.raises(DataError, match=message):
            run(raw, tmp_path)


def test_later_copies_survive_a_collision_of_one_hash() -> None:
    first = np.array([5, 5, 7, 5, 7], dtype=np.uint64)
    second = np.array([1, 2, 3, 1, 3], dtype=np.uint64)
    candidates = copies.repeated(first, second)
    assert candidates.tolist() == [True, False, True, True, True]
    assert copies.later_of_equal(first, second, candidates).tolist() == [False, False, False, True, True]


def test_version_follows_the_rules_and_nothing_else() -> None:
    version = rule_set_version(parse_schema(SHOP, where="a"))
    assert version == rule_set_version(parse_schema(SHOP.replace("name: shop", "name: other"), where="b"))
    assert version != rule_set_version(parse_schema(SHOP.replace("maximum: 100", "maximum: 99"), where="c"))
    assert version != rule_set_version(parse_schema(SHOP.replace("format: s", "format: ms"), where="d"))
    ids = [r.id for r in row_rules(parse_schema(SHOP, where="e"))] + [r.id for r in profile_rules()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", ["propensity", "truth"])
def test_probabilities_of_the_log_lie_between_zero_and_one(tmp_path: Path, name: str) -> None:
    schema = f"{{name: t, time: {{format: order}}, label: {{column: y}}, fields: [{{name: f}}], {name}: p}}"
    values = [-0.1, 0.0, 0.5, 1.0, 1.1]
    frame = pl.DataFrame({"y": [0, 1, 0, 1, 0], "f": ["a"] * 5, "p": values})
    _, clean, bad = run(write_raw(tmp_path / "raw", frame, schema), tmp_path)
    assert clean[name].to_list() == [0.0, 0.5, 1.0]
    assert bad["reasons"].to_list() == [[f"{name}:minimum"], [f"{name}:maximum"]]
