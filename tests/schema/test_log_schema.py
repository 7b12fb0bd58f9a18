"""The schema file: what it derives, and how it refuses what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

import thinktwice.data
from thinktwice.errors import SchemaError
from thinktwice.schema import load_schema, parse_schema

SCHEMAS = Path(str(thinktwice.data.__file__)).parent / "schemas"

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
        ("- a", "contains a list instead of a mapping"),
        ("name: x", "time: Field required"),
        ("{name: x, time: {column: t}, fieldz: []}", "fieldz: there is no such key; did you mean 'fields'"),
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
            "not a categorical item field",
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


CLEAN_NAMES = ["row_id", "event_time", "label", "title", "truth", "propensity", "row_weight", "split", "source_row"]
QUERY_NAMES = ["event_timestamp", "created_timestamp", "key", "instant", "clicked", "latest_at", "entity_row_id", "rn"]
SHAPES = [
    "fields: [{name: NAME}]",
    "fields: [{name: NAME, kind: numeric}]",
    "entities: {user: {key: NAME, column: u}}",
    "entities: {item: {key: NAME, as_field: false}}\nfields: [{name: a}]",
    "entities: {user: {key: user}, item: {key: item}}\nsequences: [{name: NAME, of: item}]",
    "entities: {item: {key: item}}\nvectors: [{name: NAME, dim: 2}]",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*CLEAN_NAMES, *QUERY_NAMES, "Truth", "KEY"])
def test_no_name_of_the_log_is_one_that_the_tables_use_themselves(name: str, shape: str) -> None:
    text = "name: x\ntime: {column: t}\ntruth: p\n" + shape.replace("NAME", name)
    with pytest.raises(SchemaError, match=f"name '{name}' is reserved, choose another$"):
        parse_schema(text, where="my.yaml")


@pytest.mark.parametrize(
    "name", ["segment", "first_at", "last_at", "seg_user", "seg_item", "tested", "trained", "len", "Segment"]
)
def test_names_that_stand_beside_keys_alone_are_free_for_other_fields(name: str) -> None:
    head = "name: x\ntime: {column: t}\n"
    with pytest.raises(SchemaError, match=f"name '{name}' is reserved, choose another$"):
        parse_schema(head + f"entities: {{user: {{key: {name}}}}}", where="my.yaml")
    schema = parse_schema(
        head + f"entities: {{user: {{key: user}}}}\nfields: [{{name: {name}, entity: user}}]", where="my.yaml"
    )
    assert schema.attributes_of("user")[0].name == name


@pytest.mark.parametrize(
    "described",
    [
        "entities: {user: {key: a, as_field: false}}\nfields: [{name: a}]",
        "entities: {user: {key: a}}\nfields: [{name: a}]",
        "entities: {user: {key: a, as_field: false}, item: {key: a, as_field: false}}\nfields: [{name: b}]",
        "entities: {user: {key: a, as_field: false}, item: {key: a}}",
        "entities: {user: {key: b}, item: {key: a, as_field: false}}\nvectors: [{name: a, dim: 2}]",
    ],
)
def test_an_entity_key_differs_from_the_fields_and_from_the_other_key(described: str) -> None:
    with pytest.raises(SchemaError, match=r"repeated: a: choose another$"):
        parse_schema("name: x\ntime: {column: t}\n" + described, where="my.yaml")


def test_names_differ_in_more_than_upper_and_lower_case() -> None:
    with pytest.raises(SchemaError, match=r"repeated: Slot, slot: choose another$"):
        parse_schema("{name: x, time: {column: t}, fields: [{name: slot}, {name: Slot}]}", where="my.yaml")


def test_a_user_or_item_field_does_not_end_as_the_columns_that_the_join_drops() -> None:
    head = "name: x\ntime: {column: t}\nentities: {user: {key: id_y}}\n"
    with pytest.raises(SchemaError, match=r"name 'home_y' .*choose another$"):
        parse_schema(head + "fields: [{name: home_y, entity: user}]", where="my.yaml")
    assert parse_schema(head + "fields: [{name: slot_y}]", where="my.yaml").key_of("user") == "id_y"


def test_the_plainest_keys_stay_free() -> None:
    schema = parse_schema(
        "name: x\ntime: {column: t}\nentities: {user: {key: user}, item: {key: item, title: title}}", where="my.yaml"
    )
    assert [f.name for f in schema.model_fields_in_order()] == ["user", "item"]


@pytest.mark.parametrize("source", sorted(p.stem for p in SCHEMAS.glob("*.yaml")))
def test_the_schemas_of_the_built_in_sources_take_no_reserved_name(source: str) -> None:
    assert load_schema(SCHEMAS / f"{source}.yaml").model_fields_in_order()
