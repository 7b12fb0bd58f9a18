"""A cross has the same index in a table, in a row, and where a request joins its user with its items; unseen pairs are unknown."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.protocol.requests import RequestParser
from thinktwice.data.encoder import Encoder
from thinktwice.errors import BundleError, SchemaError, ThinktwiceError
from thinktwice.models.fields import FieldSpace
from thinktwice.schema import LogSchema, parse_schema
from thinktwice.schema.describe import field_words
from thinktwice.schema.reference import json_schema

TEXT = """
name: s
time: {column: t, format: s}
entities: {user: {key: user}, item: {key: item}}
fields:
- {name: city, entity: user}
- {name: color, entity: item}
- {name: new, entity: item, kind: boolean}
- {name: device}
- {name: price, kind: numeric}
- {name: hour, derived: hour}
"""
NAMES = ("user", "item", "city", "color", "new", "device", "hour")
PAIRS = list(combinations(NAMES, 2))


def schema_of(crosses: str) -> LogSchema:
    return parse_schema(f"{TEXT}crosses: {crosses}", where="s.yaml")


ALL = schema_of(json.dumps([{"of": pair, "min_count": 1} for pair in PAIRS]))
VALUES = {name: ["a", "b", '","', "é", None] for name in NAMES} | {
    "new": ["true", "false", None], "user": ["u1", "u2"], "item": ["i1", "i2", "i3"], "hour": ["0", "1"],
}  # fmt: skip


def rows_of(data: st.DataObject, most: int = 12) -> list[dict[str, Any]]:
    one = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()})
    return [{**row, "price": 1.0} for row in data.draw(st.lists(one, min_size=1, max_size=most))]


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={**dict.fromkeys(NAMES, pl.String), "price": pl.Float64})


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_index_depends_on_the_two_values_alone(data: st.DataObject) -> None:
    train, asked = rows_of(data), rows_of(data)
    encoder = Encoder.fit(frame(train).to_arrow(), ALL)
    table = encoder.encode_table(frame(asked).to_arrow()).ids
    assert table.tolist() == encoder.encode_rows(asked).ids.tolist()
    items = {f.name for f in encoder.fields if f.entity == "item"}
    others = {f.name for f in encoder.fields} - items
    for position, row in enumerate(asked):
        joined = encoder.join(encoder.encode_side([row], others), encoder.encode_side([row], items))
        assert joined.ids[0].tolist() == table[position].tolist()
        for a, b in PAIRS:
            index = int(table[position][encoder.column_of(f"{a}_x_{b}")])
            seen = any((row[a], row[b]) == (other[a], other[b]) for other in train)
            assert (index > 0) == seen, (a, b)
            if seen:
                assert json.loads(encoder.value_of(f"{a}_x_{b}", index) or "") == [row[a], row[b]]


def test_the_vocabulary_is_limited_and_says_so() -> None:
    rows = [
        {"city": c, "device": d, "price": 1.0}
        for c, d, n in (("x", "p", 5), ("x", "q", 3), ("y", "p", 1))
        for _ in range(n)
    ]
    table = frame([{name: None for name in NAMES} | row for row in rows]).to_arrow()
    found = Encoder.fit(table, schema_of("[[city, device]]"))
    assert found.values_of("city_x_device") == ('["x","p"]', '["x","q"]')
    assert (found.cut["city_x_device"].cut, found.cut["city_x_device"].share) == (1, pytest.approx(1 / 9))
    capped = Encoder.fit(table, schema_of("[{name: pair, of: [city, device], max_values: 1}]"))
    assert capped.values_of("pair") == ('["x","p"]',)


def test_a_continued_encoder_keeps_the_indices_of_its_pairs() -> None:
    def table(pairs: list[tuple[str, str]]) -> Any:
        rows = [
            {name: None for name in NAMES} | {"city": c, "device": d, "price": 1.0} for c, d in pairs for _ in range(2)
        ]
        return frame(rows).to_arrow()

    schema = schema_of("[[city, device]]")
    before = Encoder.fit(table([("x", "p"), ("y", "p")]), schema)
    after = Encoder.fit(table([("z", "q"), ("x", "q"), ("y", "p")]), schema, before)
    assert after.continues(before)
    assert after.values_of("city_x_device")[:2] == before.values_of("city_x_device")
    assert set(after.values_of("city_x_device")[2:]) == {'["z","q"]', '["x","q"]'}


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_an_encoder_of_crosses_survives_its_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("encoder")
    rows = rows_of(data)
    encoder = Encoder.fit(frame(rows).to_arrow(), ALL)
    encoder.save(folder)
    again = Encoder.load(folder)
    assert again.fields == encoder.fields
    assert again.encode_rows(rows).ids.tolist() == encoder.encode_rows(rows).ids.tolist()
    assert FieldSpace.of(ALL, again).crosses == tuple((c.column, *c.parents) for c in encoder.crosses)


@pytest.mark.parametrize("word", ["x", '["x"]', '["x","p","q"]', '[1,"p"]', '["x","unknown"]', '{"a":1}'])
def test_a_damaged_vocabulary_of_pairs_is_refused(word: str, tmp_path: Path) -> None:
    from thinktwice.data.vocabulary import VOCABULARY_FILE, read_vocabularies, write_vocabularies

    row = {name: None for name in NAMES} | {"city": "x", "device": "p", "price": 1.0}
    Encoder.fit(frame([row]).to_arrow(), schema_of("[{of: [city, device], min_count: 1}]")).save(tmp_path)
    names = tuple(json.loads((tmp_path / "encoder.json").read_text())["vocabulary_fields"])
    words = read_vocabularies(tmp_path / VOCABULARY_FILE, names)
    write_vocabularies(tmp_path / VOCABULARY_FILE, words | {"city_x_device": [word]})
    with pytest.raises(BundleError, match="not a pair of values"):
        Encoder.load(tmp_path)


def test_a_request_does_not_send_a_cross() -> None:
    parser = RequestParser(ALL, online=False)
    (row,) = parser.parse({"rows": [{"city": "a", "device": "b"}]}, "r").rows or ()
    assert set(row) == {"city", "device"}
    with pytest.raises(ThinktwiceError, match="it is computed from city and device, leave it out"):
        parser.parse({"rows": [{"city_x_device": "a"}]}, "r")


@pytest.mark.parametrize(
    ("crosses", "word"),
    [
        ("[[city, city]]", "crossed with itself"),
        ("[[city, price]]", "'price', which is not a categorical field; these are user, item, city"),
        ("[[city, town]]", "'town', which is not a categorical field"),
        ("[[city, device], {name: other, of: [device, city]}]", "crossed twice"),
        ("[{name: color, of: [city, device]}]", "repeated: color"),
        ("[[city]]", "crosses.0"),
        ("[{of: [city, device], limit: 3}]", "limit"),
        ("[{of: [city, device], min_count: 0}]", "min_count"),
    ],
)
def test_wrong_crosses_are_one_sentence(crosses: str, word: str) -> None:
    with pytest.raises(SchemaError, match=r"s\.yaml") as caught:
        schema_of(crosses)
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_the_schema_file_the_report_and_the_editor_know_them() -> None:
    schema = schema_of("[[city, device]]")
    assert parse_schema(schema.to_yaml(), where="again") == schema
    assert field_words(schema)["city_x_device"].startswith("pair of city and device, computed from them")
    import jsonschema

    validator = jsonschema.Draft202012Validator(json_schema())
    given_ = {"name": "s", "time": {"format": "order"}, "fields": [{"name": "a"}, {"name": "b", "kind": "boolean"}]}
    assert list(validator.iter_errors({**given_, "crosses": [["a", "b"], {"of": ["a", "b"], "name": "c"}]})) == []
    assert list(validator.iter_errors({**given_, "crosses": [["a"]]}))


def test_a_cross_is_hidden_in_training_with_its_fields() -> None:
    import torch

    from thinktwice.data.encoded import EncodedRows
    from thinktwice.train.augment import Augmenter
    from thinktwice.train.config import FinetuneConfig

    rows = [{name: "a" for name in NAMES} | {"price": 1.0}] * 4
    schema = schema_of("[{of: [city, device], min_count: 1}]")
    encoder = Encoder.fit(frame(rows).to_arrow(), schema)
    encoded: EncodedRows = encoder.encode_table(frame(rows).to_arrow())
    config = FinetuneConfig(unknown_share=0.4)
    augmented = Augmenter("none", encoded, FieldSpace.of(schema, encoder), config)(
        encoded.batch(torch.arange(4).repeat(50).numpy()), torch.arange(200), torch.Generator().manual_seed(0)
    ).ids
    city, device, cross = (augmented[:, encoder.column_of(n)] for n in ("city", "device", "city_x_device"))
    assert not ((cross > 0) & ((city == 0) | (device == 0))).any()
    assert (cross > 0).any()
