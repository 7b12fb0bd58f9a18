"""Weights of the elements of lists: how a log and its side tables are read, and what is quarantined."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.validate.suite import check_rows
from tests.data.lists_log import WEIGHED, as_text, cleaned, weighed_log
from thinktwice.data.feature_tables import build_feature_tables
from thinktwice.data.ingest import ingest
from thinktwice.data.point_in_time import training_rows
from thinktwice.errors import SchemaError
from thinktwice.schema import load_schema, parse_schema
from thinktwice.validate.column_rules import NEGATIVE, NO_NUMBER, UNEVEN
from thinktwice.validate.lists import WEIGHTS, read_element_weights
from thinktwice.validate.rules import row_rules, table_rules
from thinktwice.validate.split import split_log

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning"),
]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_weights_are_read_alike_from_every_format(ending: str, tmp_path: Path) -> None:
    assert cleaned(weighed_log(), tmp_path, WEIGHED, ending).rows_quarantined == 0
    clean = pl.read_parquet(tmp_path / "clean" / "clean.parquet")
    expected = weighed_log()
    assert clean["tag_weights"].dtype == clean["mood_weights"].dtype == pl.List(pl.Float64)
    for name, column in (("tag_weights", "tag scores"), ("mood_weights", "mood_weights")):
        assert [w or [] for w in clean[name].to_list()] == [w or [] for w in expected[column].to_list()]
    rows = training_rows(tmp_path / "clean", load_schema(tmp_path / "clean" / "schema.yaml"))
    assert [v or [] for v in rows["tag_weights"].to_pylist()] == [w or [] for w in expected["tag scores"].to_list()]


def test_weights_of_a_side_table(tmp_path: Path) -> None:
    schema = WEIGHED + "tables: {items: {path: items.csv}}\n"
    (tmp_path / "items.csv").write_text(
        'item,tags,tag scores\ni0,a|b,0.25|1\ni1,a,\ni2,a|b,1\ni3,"a||c",1|2|3\ni4,,\ni5,a|b,1|-1\ni6,a,nan\n'
    )
    result = cleaned(weighed_log().drop("tags", "tag scores"), tmp_path, schema)
    assert result.tables["item"].reasons == {
        "items.tag_weights:length": 1,
        "items.tag_weights:minimum": 1,
        "items.tag_weights:number": 1,
    }
    described = load_schema(tmp_path / "clean" / "schema.yaml")
    rows = pl.from_arrow(training_rows(tmp_path / "clean", described))
    assert isinstance(rows, pl.DataFrame)
    known = dict(rows.select("item", "tag_weights").unique("item").iter_rows())
    lists = dict(rows.select("item", "tags").unique("item").iter_rows())
    assert known["i0"] == [0.25, 1.0] and known["i1"] is None and known["i2"] is None
    assert lists["i3"] == ["a", "c"] and known["i3"] == [1.0, 3.0]  # the missing element takes its weight along
    build_feature_tables(tmp_path / "clean", tmp_path / "tables", described)
    table = pl.read_parquet(tmp_path / "tables" / "item_attributes.parquet")
    assert table["tag_weights"].dtype == pl.List(pl.Float64)
    assert {rule.id for rule in table_rules(described, "item")} >= set(result.tables["item"].reasons)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("1|2|3", "length"),
        ("1", "length"),
        ("1|-0.5", "minimum"),
        ("1|nan", "number"),
        ("1|inf", "number"),
        ("1|1e300", "number"),
        ("1|", "number"),
        ("1|x", "number"),
        ("1,2", "length"),
    ],
)
def test_weights_that_break_a_rule_are_quarantined_with_its_name(value: str, rule: str, tmp_path: Path) -> None:
    at = pl.int_range(pl.len()) == 9  # two tags
    frame = as_text(weighed_log()).with_columns(
        pl.when(at).then(pl.lit(value)).otherwise("tag scores").alias("tag scores")
    )
    frame.write_csv(tmp_path / "log.csv")
    (tmp_path / "s.yaml").write_text(WEIGHED)
    ingest("log", tmp_path / "log.csv", tmp_path / "s.yaml", tmp_path / "raw")
    result = split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    reason = f"tag_weights:{rule}"
    assert reason in result.reasons and result.rows_quarantined == 1
    assert set(result.reasons) <= {reason, "tag_weights:number"} and repr(value) in result.examples[reason]
    described = {rule.id: rule for rule in row_rules(load_schema(tmp_path / "s.yaml"))}
    assert described[reason].source == "tag scores" and "replay" in described[reason].fix


def test_gx_sees_wrong_weights_in_a_clean_file(tmp_path: Path) -> None:
    assert cleaned(weighed_log(), tmp_path, WEIGHED).rows_quarantined == 0
    path = tmp_path / "clean" / "clean.parquet"
    schema = load_schema(tmp_path / "clean" / "schema.yaml")
    assert all(f.passed for f in check_rows(tmp_path / "clean", schema))
    clean = pl.read_parquet(path)
    ids = clean["row_id"].to_list()
    wrong = {
        3: [1.0, 1.0, -1.0],
        10: [1.0, 2.0],
        17: [1.0, math.inf, 1.0],
        24: [1.0, math.nan, 1.0],
        38: [1.0, None, 0.0],
    }
    values = [wrong.get(n, w) for n, w in enumerate(clean["tag_weights"].to_list())]
    clean.with_columns(tag_weights=pl.Series(values, dtype=pl.List(pl.Float64))).write_parquet(path)
    broken = {f.rule: set(f.samples) for f in check_rows(tmp_path / "clean", schema) if not f.passed}
    assert broken == {
        "tag_weights:minimum": {ids[3]},
        "tag_weights:length": {ids[10]},
        "tag_weights:number": {ids[17], ids[24], ids[38]},
    }


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{name: x, weights: w}", "kind list"),
        ("{name: x, kind: list, weight: w}", "did you mean 'weights'"),
        ("{name: x, kind: list, weights: {nam: w}}", "did you mean 'name'"),
        ("{name: x, kind: list, weights: x}", "repeated: x"),
        ("{name: x, kind: list, weights: a__b}", "__"),
        ("{name: x, kind: list, weights: w, separator: '.'}", "another separator"),
        ("{name: x, kind: list, weights: w, separator: 'e+'}", "another separator"),
        ("{name: x, kind: list, weights: 3}", "weights"),
    ],
)
def test_wrong_descriptions_are_named(line: str, word: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(f"name: a\ntime: {{format: order}}\nfields: [{line}]", where="t")
    assert word in str(caught.value)


def test_a_column_of_weights_that_a_log_lacks_or_has_in_another_type(tmp_path: Path) -> None:
    frame = weighed_log().rename({"tag scores": "tag score"})
    with pytest.raises(
        SchemaError, match=r"weights of field 'tags' wants column 'tag scores'.*did you mean 'tag score'"
    ):
        cleaned(frame, tmp_path / "a", WEIGHED)
    numbers = weighed_log().with_columns(pl.lit(1.5).alias("tag scores"))
    with pytest.raises(SchemaError, match=r"'tag scores' .*lists of numbers, and text with the separator"):
        cleaned(numbers, tmp_path / "b", WEIGHED)


WORDS = st.lists(st.sampled_from(["a", "b", "", None]), max_size=4)
NUMBERS = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, None, 1e300, 5e-324]), st.floats(0, 10)), max_size=4
)


def judged(words: list[str | None] | None, weights: list[float | None] | None) -> tuple[bool, bool, bool, Any]:
    """Whether the numbers differ, one is no number, one is negative; and the clean weights."""
    words, weights = words or [], weights or []
    readable = [w is not None and math.isfinite(w) and abs(w) < 1e300 for w in weights]
    differ = bool(weights) and len(weights) != len(words)
    kept = None if differ else [w for w, word in zip(weights, words, strict=False) if word]
    return differ, not all(readable), any(w < 0 for w, ok in zip(weights, readable, strict=True) if ok and w is not None), kept or None  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.tuples(st.none() | WORDS, st.none() | NUMBERS), min_size=1, max_size=6), narrow=st.booleans())
def test_weights_are_read_as_python_reads_them(rows: list[tuple[Any, Any]], narrow: bool) -> None:
    numbers = pa.list_(pa.float32() if narrow else pa.float64())
    lists = pa.array([words for words, _ in rows], pa.list_(pa.string()))
    weights = pa.array([w for _, w in rows], numbers)
    found = dict(read_element_weights(lists, weights, "|"))
    for row, (words, _) in enumerate(rows):
        given_weights = weights[row].as_py()
        if narrow and given_weights is not None:  # the number of its fewest digits
            given_weights = [None if w is None else float(str(np.float32(w))) for w in given_weights]
        differ, no_number, negative, kept = judged(words, given_weights)
        assert (found[UNEVEN][row], found[NO_NUMBER][row], found[NEGATIVE][row]) == (differ, no_number, negative)
        if not (differ or no_number or negative):
            assert found[WEIGHTS][row] is None if kept is None else found[WEIGHTS][row].to_list() == kept
