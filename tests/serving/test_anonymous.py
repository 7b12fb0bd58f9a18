"""Rows without a user train the vector of an unknown user, and requests without one are answered with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from serving.feedback.rules import EventRules
from serving.protocol.requests import RequestParser
from serving.protocol.v2_fields import parse
from serving.protocol.v2_tensors import InputTensor, read
from thinktwice.data.encoder import Encoder
from thinktwice.data.ingest import ingest
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.instant.log_counters import log_counters, log_rows
from thinktwice.data.point_in_time import training_rows
from thinktwice.errors import RequestError, SchemaError
from thinktwice.schema import load_schema, parse_schema
from thinktwice.validate.split import SplitResult, split_log

SCHEMA = """\
name: visits
time: {column: at, format: s}
label: {column: y}
entities: {user: {key: user, anonymous: true}, item: {key: item}}
fields:
- {name: gender, entity: user}
- {name: device}
sequences: [{name: recent, of: item}]
statistics: {windows_days: [0]}
"""


def prepared(folder: Path, schema: str = SCHEMA, rows: int = 60) -> SplitResult:
    frame = pl.DataFrame(
        {
            "at": [1_700_000_000 + 3600 * (n // 2) for n in range(rows)],
            "y": [n % 2 for n in range(rows)],
            "user": [None if n % 3 == 0 else "" if n % 3 == 1 and n % 2 else f"u{n % 5}" for n in range(rows)],
            "item": [f"i{n // 2 % 4}" for n in range(rows)],
            "gender": ["f" if n % 3 == 2 else None for n in range(rows)],
            "device": ["a"] * rows,
        }
    )
    frame.write_parquet(folder / "log.parquet")
    (folder / "s.yaml").write_text(schema)
    ingest("log", folder / "log.parquet", folder / "s.yaml", folder / "raw")
    return split_log(folder / "raw", folder / "clean", folder / "bad", run_id="r")


def test_rows_without_a_user_are_clean_and_counted(tmp_path: Path) -> None:
    result = prepared(tmp_path)
    clean = pl.read_parquet(tmp_path / "clean" / "clean.parquet")
    assert result.rows_quarantined == 0 and result.notes["user:anonymous"] == clean["user"].null_count() == 30
    rows = training_rows(tmp_path / "clean", load_schema(tmp_path / "clean" / "schema.yaml"))
    nobody = pl.DataFrame(rows).filter(pl.col("user").is_null())
    assert nobody["gender"].null_count() == nobody["user_views_all"].null_count() == nobody.height
    assert all(not values for values in nobody["recent"].to_list())


def test_without_the_key_they_are_quarantined_with_the_way_out(tmp_path: Path) -> None:
    result = prepared(tmp_path, SCHEMA.replace(", anonymous: true", ""))
    assert result.reasons == {"user:missing": 30}


def test_equal_rows_of_two_visitors_are_no_copies(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "at": [1_700_000_001 + n // 4 for n in range(40)],
            "y": [0] * 40,
            "user": [None if n % 4 < 2 else "u1" for n in range(40)],
            "item": ["i"] * 40,
            "gender": ["f"] * 40,
            "device": ["a"] * 40,
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "s.yaml").write_text(SCHEMA + "quarantine_budget: 1\n")
    ingest("log", tmp_path / "log.parquet", tmp_path / "s.yaml", tmp_path / "raw")
    result = split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    assert result.reasons == {"row:duplicate": 10}


def test_they_train_the_vector_that_their_requests_get(tmp_path: Path) -> None:
    prepared(tmp_path)
    schema = load_schema(tmp_path / "clean" / "schema.yaml")
    rows = training_rows(tmp_path / "clean", schema)
    encoder = Encoder.fit(rows, schema)
    column = encoder.column_of("user")
    ids = encoder.encode_table(rows).ids[:, column]
    assert ((ids == 0) == pl.Series(rows["user"].to_pylist()).is_null().to_numpy()).all()
    parser = RequestParser(schema, online=True)
    asked = {"candidates": ["i1"], "context": {"device": "a"}}
    for request in (asked, {**asked, "user_id": None}):
        found = parser.parse(json.loads(json.dumps(request)), "r")
        assert found.user_id is None
        assert encoder.encode_rows([{**found.context, "user": found.user_id}]).ids[0, column] == 0
    data = [
        InputTensor(name="candidates", datatype="BYTES", shape=[1], data=["i1"]),
        InputTensor(name="device", datatype="BYTES", shape=[1], data=["a"]),
    ]
    assert parse(read(data, b""), {}, parser).user_id is None
    for value in ("", 1.5e300, []):
        with pytest.raises(RequestError):
            parser.parse({**asked, "user_id": value}, "r")


def test_their_outcomes_count_for_items_and_for_no_user(tmp_path: Path) -> None:
    schema = SCHEMA.replace("windows_days: [0]", "instant: {feedback_delay: 1m, attributes: [gender], topics: []}")
    frame = pl.DataFrame(
        {
            "at": [1_700_000_000 + 3600 * n for n in range(40)],
            "y": [n % 2 for n in range(40)],
            "user": [None if n % 4 < 3 else "u1" for n in range(40)],
            "item": ["i"] * 40,
            "gender": ["f"] * 40,  # also where the visitor is unknown
            "device": ["a"] * 40,
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "s.yaml").write_text(schema)
    ingest("log", tmp_path / "log.parquet", tmp_path / "s.yaml", tmp_path / "raw")
    assert split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r").rows_quarantined == 0
    clean = pl.read_parquet(tmp_path / "clean" / "clean.parquet")
    assert clean["gender"].is_null().to_list() == clean["user"].is_null().to_list()
    definition = definition_of(load_schema(tmp_path / "clean" / "schema.yaml"))
    assert definition is not None
    counted = np.concatenate(list(log_counters(log_rows(lambda n: clean[n], definition), definition, tmp_path)))
    counters = dict(zip(definition.names, counted.T, strict=True))
    nobody = clean["user"].is_null().to_numpy()
    for name, values in counters.items():
        if name.startswith("user_"):
            assert np.isnan(values[nobody]).all(), name
    earlier = np.arange(40)
    assert np.allclose(counters["item_views"][1:], np.log1p(earlier[1:]))  # all impressions of the item, whoever saw it
    known_before = np.cumsum(~nobody) - ~nobody
    seen = ~nobody & (known_before > 0)
    assert np.allclose(counters["user_views"][seen], np.log1p(known_before[seen]))
    assert np.isnan(counters["item_x_gender_views"][nobody]).all()
    assert np.allclose(counters["item_x_gender_views"][seen], np.log1p(known_before[seen]))


def test_events_of_anonymous_visitors_have_no_attributes_of_a_user() -> None:
    schema = SCHEMA.replace("windows_days: [0]", "instant: {attributes: [gender], topics: []}")
    event = {"kind": "impression", "request_id": "r", "item_id": "i", "at": 1.7e9, "values": {"gender": "f"}}
    rules = EventRules(parse_schema(schema, where="t"))
    assert rules.event({**event, "user_id": "u"}).values == {"gender": "f"}
    assert rules.event(event).values == {}


def test_a_model_that_needs_users_refuses_requests_without_one() -> None:
    parser = RequestParser(parse_schema(SCHEMA.replace(", anonymous: true", ""), where="t"), online=True)
    with pytest.raises(RequestError, match="user_id"):
        parser.parse({"candidates": ["i1"]}, "r")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("item: {key: item}", "item: {key: item, anonymous: true}"), "only users"),
        (("entity: user}", "entity: user, nullable: false}"), "'gender': anonymous users have no attributes"),
    ],
)
def test_what_cannot_be_anonymous_is_refused(change: tuple[str, str], word: str) -> None:
    with pytest.raises(SchemaError, match=word):
        parse_schema(SCHEMA.replace(*change), where="t")
