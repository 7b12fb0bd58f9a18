"""The schema file: what it derives, and how it refuses what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from thinktwice.errors import SchemaError
from thinktwice.schema import load_schema, parse_schema

FULL = """
name: shop
time: {column: ts, format: ms}
label: {column: clicked}
entities:
  user: {key: user_id}
  item: {key: item_id, column: sku, title: title}
fields:
  - {name: gender, entity: user, allowed: [f, m]}
  - {name: price, entity: item, kind: numeric, minimum: 0, buckets: 16}
  - {name: slot}
  - {name: hour, derived: hour}
sequences:
  - {name: recent_items, of: item_id, length: 5}
vectors:
  - {name: picture, dim: 4}
statistics: {windows_days: [7, 0]}
scenario: slot
"""


def test_the_model_fields_come_in_one_order_and_with_their_protection() -> None:
    schema = parse_schema(FULL, where="test")
    fields = schema.model_fields_in_order()
    assert [f.name for f in fields] == [
        "user_id", "item_id", "gender", "price", "slot", "hour",
        "user_views_7d", "user_rate_7d", "user_views_all", "user_rate_all",
        "item_views_7d", "item_rate_7d", "item_views_all", "item_rate_all",
        "recent_items", "picture",
    ]  # fmt: skip
    protected = {f.name for f in fields if f.protected}
    assert {"user_id", "item_id", "gender", "slot"}.isdisjoint(protected)
    assert {"price", "hour", "user_rate_7d", "recent_items", "picture"} <= protected
    assert schema.key_of("item") == "item_id"


def test_yaml_round_trip() -> None:
    schema = parse_schema(FULL, where="test")
    assert parse_schema(schema.to_yaml(), where="again") == schema


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML at line"),
        ("- a", "holds list instead of a mapping"),
        ("name: x", "time: Field required"),
        ("{name: x, time: {column: t}, fieldz: []}", "fieldz: Extra inputs"),
        ("{name: x, time: {column: t}}", "describes no field"),
        ("{name: x, time: {column: t}, fields: [{name: label}]}", "'label' is reserved"),
        ("{name: x, time: {column: t}, fields: [{name: a}, {name: a}]}", "repeated: a"),
        ("{name: x, time: {column: t}, fields: [{name: a, entity: user}]}", "entities.user is not described"),
        (
            "{name: x, time: {format: order, column: t}, fields: [{name: a}]}",
            "'column' is required for every format but",
        ),
        (
            "{name: x, time: {column: t}, fields: [{name: a, kind: numeric, allowed: [b]}]}",
            "'allowed' is for categorical",
        ),
        ("{name: x, time: {column: t}, fields: [{name: a}], scenario: b}", "scenario names 'b'"),
        (
            "{name: x, time: {column: t}, fields: [{name: a}], quarantine_budget: 5}",
            "quarantine_budget: Input should be",
        ),
        (
            "{name: x, time: {column: t}, entities: {user: {key: u}}, fields: [{name: a}], sequences: [{name: s, of: a}]}",
            "no categorical item field",
        ),
    ],
)
def test_a_wrong_schema_is_one_sentence_that_names_the_place(text: str, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(text, where="my.yaml")
    assert "my.yaml" in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_schema_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"nowhere\.yaml cannot be read"):
        load_schema(tmp_path / "nowhere.yaml")
