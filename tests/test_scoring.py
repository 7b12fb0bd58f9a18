"""``score_table``: the same values give the same bits from any table, and a wrong value is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.scorer import Scorer
from tests.serving.small import PLAIN_SCHEMA, make_bundle, small, training_rows
from thinktwice import Bundle, Scores, open_bundle, score_table
from thinktwice.data.scoring_rows import event_times
from thinktwice.errors import DataError, RequestError, SchemaError, ThinktwiceError
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.triggers import BasePass, Budget, Selection, Trigger

__all__ = ["small"]


@pytest.fixture(scope="module")
def bundle(small: Path) -> Bundle:
    return open_bundle(small / "bundle")


@pytest.fixture(scope="module")
def rows(bundle: Bundle) -> pl.DataFrame:
    return training_rows(200).select(f.name for f in bundle.encoder.fields)


@pytest.fixture(scope="module")
def expected(bundle: Bundle, rows: pl.DataFrame) -> Scores:
    return score_table(bundle, rows)


def same(one: Scores, other: Scores) -> bool:
    return one.to_table().equals(other.to_table())


FORMS: dict[str, Callable[[pl.DataFrame], Any]] = {
    "pyarrow": lambda rows: rows.to_arrow(),
    "a record batch": lambda rows: rows.to_arrow().combine_chunks().to_batches()[0],
    "pandas": lambda rows: rows.to_pandas(),
    "dictionaries": lambda rows: rows.to_dicts(),
    "missing keys": lambda rows: [{k: v for k, v in row.items() if v is not None} for row in rows.to_dicts()],
    "categoricals": lambda rows: rows.with_columns(pl.col("genre", "slot").cast(pl.Categorical)),
    "numbers as text": lambda rows: rows.with_columns(pl.col("price", "bid").cast(pl.String)),
    "lists as text": lambda rows: rows.with_columns(
        history=pl.col("history").list.join("|"), cover="[" + pl.col("cover").cast(pl.List(pl.String)).list.join(", ") + "]"
    ),
    "decimals": lambda rows: [{**row, "price": Decimal(row["price"])} for row in rows.to_dicts()],
    "large types": lambda rows: rows.to_arrow(compat_level=pl.CompatLevel.oldest()),
    "arrays": lambda rows: rows.with_columns(pl.col("cover").cast(pl.Array(pl.Float64, 3))),
    "chunks": lambda rows: pa.concat_tables([rows.head(70).to_arrow(), rows.tail(130).to_arrow()]),
    "more columns": lambda rows: rows.with_columns(label=pl.lit("no label"), event_time=pl.lit(None), row_id=pl.lit(3)),
    "other order": lambda rows: rows.select(sorted(rows.columns, reverse=True)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_the_same_values_scores_the_same(form: str, bundle: Bundle, rows: pl.DataFrame, expected: Scores):
    assert same(score_table(bundle, FORMS[form](rows)), expected)
    assert (expected.num_paths > 1).any() and len(expected) == 200


def test_a_row_alone_scores_as_among_many_even_where_the_cap_would_bind(
    bundle: Bundle, rows: pl.DataFrame, expected: Scores
):
    config = bundle.engine.config.looking(max_path_rows=10)
    engine = Engine(bundle.model, bundle.engine.reliability, config, bundle.engine.calibration)
    capped = dataclasses.replace(bundle, engine=engine)
    whole = score_table(capped, rows)
    assert engine.score(bundle.encoder.encode_rows(rows.to_dicts())).capped
    assert (whole.num_paths > 1).sum() == (expected.num_paths > 1).sum() > 2
    for place in np.flatnonzero(expected.num_paths > 1)[:5].tolist():
        alone = score_table(capped, rows.slice(place, 1))
        assert alone.probability[0] == whole.probability[place] and alone.num_paths[0] == whole.num_paths[place]
    per_request = score_table(capped, rows.with_columns(r=pl.lit(1)), request="r")
    assert 0 < (per_request.num_paths - 1).sum() <= 10  # within a request the cap is the model's


def test_a_trigger_per_request_needs_requests(bundle: Bundle, rows: pl.DataFrame):
    config = bundle.engine.config.looking(trigger=Budget(share=0.5))
    model = dataclasses.replace(bundle, engine=Engine(bundle.model, bundle.engine.reliability, config))
    with pytest.raises(SchemaError, match=r"per request .trigger 'budget'.: name the column"):
        score_table(model, rows)
    numbered = rows.with_columns(r=pl.int_range(200) // 10)
    scores = score_table(model, numbered, request="r")
    assert ((scores.num_paths > 1).reshape(20, 10).sum(axis=1) <= 5).all() and (scores.num_paths > 1).any()
    with pytest.raises(DataError, match=r"from row 0 on has 2,000 rows of one 'r', a server takes 1,000"):
        score_table(model, pl.concat([rows] * 10).with_columns(r=None), request="r")


def test_derived_fields_come_from_the_time(bundle: Bundle, rows: pl.DataFrame):
    bare, at = rows.drop("hour", "weekday"), datetime(2026, 3, 4, 5, 30, tzinfo=timezone.utc)
    wanted = score_table(bundle, bare.with_columns(hour=pl.lit("5"), weekday=pl.lit("2")))
    forms: list[Any] = [
        bare.with_columns(event_time=pl.lit(at)),
        bare.with_columns(timestamp=pl.lit("2026-03-04T05:30:00Z")),
        bare.with_columns(event_time=pl.lit(at.timestamp())),
        bare.with_columns(ts=pl.lit(int(at.timestamp()))),  # the log's own column
        [{**row, "timestamp": at} for row in bare.to_dicts()],
        [{**row, "event_time": at.isoformat()} for row in bare.to_dicts()],
    ]
    for form in forms:
        assert same(score_table(bundle, form), wanted)
    unknown = score_table(bundle, bare.with_columns(hour=None, weekday=None))
    assert same(score_table(bundle, bare.with_columns(event_time=pl.lit(None, pl.Datetime))), unknown)


@pytest.mark.parametrize("kind", ["int32", "uint32", "int64", "uint64", "float64"])
def test_a_time_column_of_any_width_is_read(kind: str, bundle: Bundle):
    table = pa.table({"ts": pa.array([0, 1_700_000_000, None]).cast(kind)})
    assert event_times(table, bundle.schema).to_list() == [0, 1_700_000_000_000_000, None]
    narrow = pa.table({"ts": pa.array([7, None], pa.int8())})
    assert event_times(narrow, bundle.schema).to_list() == [7_000_000, None]


def test_columns_may_have_the_names_of_the_log(tmp_path: Path):
    make_bundle(tmp_path, PLAIN_SCHEMA)
    bundle = open_bundle(tmp_path / "bundle")
    schema = bundle.schema.model_copy(
        update={"fields": tuple(f.model_copy(update={"column": f"source {f.name}"}) for f in bundle.schema.fields)}
    )
    renamed = dataclasses.replace(bundle, schema=schema)
    rows = pl.DataFrame({"site": ["s1", "s2", None], "bid": [0.1, None, 0.9]})
    expected = score_table(bundle, rows)
    assert same(score_table(renamed, rows), expected)
    assert same(score_table(renamed, rows.rename(lambda name: f"source {name}")), expected)
    assert same(score_table(renamed, rows.rename(lambda name: f"source {name}").to_dicts()), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop("genre"), "no column 'genre'"),
        (lambda rows: rows.drop("history"), "thinktwice score --features point-in-time"),
        (lambda rows: rows.drop("hour"), "or a column 'event_time'"),
        (lambda rows: rows.with_columns(price=pl.lit("cheap")), "column 'price', row 0: 'cheap' is not a number"),
        (lambda rows: rows.with_columns(price=pl.lit(float("inf"))), "column 'price', row 0: 'inf' is not a number"),
        (lambda rows: rows.with_columns(price=pl.lit([1.0])), "column 'price', row 0: '.1.0.' is not a number"),
        (lambda rows: rows.with_columns(genre=pl.lit("x" * 600)), "column 'genre', row 0: 'x+...' is too long"),
        (lambda rows: rows.with_columns(genre=pl.lit("a\0b")), "contains NUL"),
        (lambda rows: rows.with_columns(genre=pl.lit([1])), "column 'genre' has type"),
        (lambda rows: rows.with_columns(user_id=pl.lit(2.0**53)), "too large to represent integers exactly"),
        (lambda rows: rows.with_columns(cover=pl.lit([1.0, 2.0])), "is not a list of 3 finite numbers"),
        (lambda rows: rows.with_columns(cover=pl.lit([1.0, 2.0, float("nan")])), "is not a list of 3 finite numbers"),
        (lambda rows: rows.with_columns(cover=pl.lit([1.0, 2.0, 1e39])), "is not a list of 3 finite numbers"),
        (lambda rows: rows.with_columns(cover=pl.lit("1,2")), "row 0: '1,2' is not a list of 3 finite numbers"),
        (lambda rows: rows.with_columns(cover=pl.lit("1,2,much")), "'1,2,much' is not a list of 3 finite numbers"),
        (lambda rows: rows.with_columns(cover=pl.lit(3)), "column 'cover' has type .*or text with ',' between"),
        (lambda rows: rows.with_columns(history=pl.lit(1)), "column 'history' has type .*or text with '\\|' between"),
        (lambda rows: rows.with_columns(history=pl.lit('"i1|i2"')), "has '\\|' inside an element"),
        (lambda rows: rows.drop("hour").with_columns(event_time=pl.lit("noon")), "'noon' is not a time"),
        (lambda rows: rows.drop("hour").with_columns(event_time=pl.lit(-5)), "'-5' is not a time between 1970 and 2100"),
        (lambda rows: pa.table([pa.array([1]), pa.array([2])], ["bid", "bid"]), "two columns named 'bid'"),
        (lambda rows: "rows.parquet", "rows of type str cannot be scored"),
        (lambda rows: 7, "rows of type int cannot be scored"),
        (lambda rows: [1, 2], "a row is not a mapping"),
        (lambda rows: [*rows.head(2).to_dicts(), {"price": "cheap"}], "row 2, field 'price': 'cheap' is not a number"),
        (lambda rows: [{**rows.to_dicts()[0], "genre": {}}], "row 0, field 'genre': .* neither an id nor a category"),
        (lambda rows: [{**rows.to_dicts()[0], "genre": "\ud800"}], "half of a surrogate pair"),
        (lambda rows: [{**rows.to_dicts()[0], "history": "i1"}], "row 0, field 'history': 'i1' is not a list"),
        (lambda rows: [{**rows.to_dicts()[0], "cover": [1, "x", 3]}], "row 0, field 'cover': .* is not a number"),
        (
            lambda rows: rows.with_columns(cover=pl.Series([[1.0, None, 3.0]] * rows.height, dtype=pl.List(pl.Float64))),
            "column 'cover'.* is not a list of 3 finite numbers",
        ),
        (lambda rows: [{**rows.to_dicts()[0], "timestamp": "noon"}], "field 'event_time': 'noon' is not a time"),
        (lambda rows: [{}], "the rows have no column"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_named(
    change: Callable[[pl.DataFrame], Any], words: str, bundle: Bundle, rows: pl.DataFrame
):
    with pytest.raises(ThinktwiceError, match=words) as caught:
        score_table(bundle, change(rows))
    assert "\n" not in str(caught.value)


VALUES = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.sampled_from(["i1", "g1", "s1", "1", "0.5", " 2 ", "true", "nan"]),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.booleans(),
    st.dates(date(1900, 1, 1)),
    st.lists(st.one_of(st.floats(width=32), st.text(max_size=3), st.none()), max_size=4),
    st.sampled_from([np.float32(0.2), np.float32(2.0), np.int8(3), np.bool_(True)]),
)


@given(
    st.dictionaries(st.sampled_from(["user_id", "genre", "price", "bid", "slot", "history", "cover", "hour"]), VALUES)
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mapping_scores_as_the_raw_row_of_a_request_or_both_are_refused(
    bundle: Bundle, rows: pl.DataFrame, drawn: dict
):
    row = {**rows.to_dicts()[0], **drawn}
    scorer = Scorer(bundle, None)
    try:
        answer = scorer.score(scorer.parser.parse_all([{"rows": [row]}], "instances"))[0]
    except RequestError:
        with pytest.raises(ThinktwiceError):
            score_table(bundle, [row])
        return
    scores = score_table(bundle, [row])
    assert (scores.probability[0], scores.uncertainty[0], scores.num_paths[0]) == (
        answer.probability[0],
        answer.uncertainty[0],
        answer.num_paths[0],
    )


def test_a_trigger_of_ones_own_decides(bundle: Bundle, rows: pl.DataFrame, expected: Scores):
    asked = np.arange(200) % 7 == 0

    class EverySeventh(Trigger):
        def mark(self, seen: BasePass) -> Selection:
            return Selection(np.where(asked, 10.0, 0.0), asked)

    own = dataclasses.replace(bundle, engine=bundle.engine.with_trigger(EverySeventh()))
    assert ((score_table(own, rows).num_paths > 1) == asked).all()
    assert same(score_table(bundle, rows), expected)  # the engine it was made from is as before


def test_no_rows_have_no_scores(bundle: Bundle, rows: pl.DataFrame):
    for nothing in ([], rows.head(0)):
        scores = score_table(bundle, nothing)
        assert len(scores) == 0 and scores.to_table().schema == score_table(bundle, rows.head(1)).to_table().schema
