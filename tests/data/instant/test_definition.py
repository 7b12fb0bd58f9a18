"""Names and hash of the counters, and the part of the schema that asks for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.data.instant.logs import definition, schema_of
from thinktwice.data.feature_tables import table_specs
from thinktwice.data.instant.definition import counter_names, definition_of
from thinktwice.errors import SchemaError
from thinktwice.schema import parse_schema


def test_the_names_say_what_is_counted() -> None:
    names = counter_names(schema_of({"last": [3, 50], "windows": ["hour"], "topics": ["genre"], "attributes": ["sex"]}))
    assert names == (
        "user_views", "user_views_hour", "user_x_genre_views", "user_gap", "user_age", "user_rate",
        "user_residual", "user_residual_last_3", "user_residual_last_50", "user_residual_hour", "user_x_genre_residual",
        "item_views", "item_views_hour", "item_x_sex_views", "item_gap", "item_age", "item_rate",
        "item_rate_last_3", "item_rate_last_50", "item_rate_hour", "item_x_sex_rate",
    )  # fmt: skip


def test_nothing_is_counted_that_is_not_asked_for() -> None:
    plain = parse_schema("{name: t, time: {column: ts}, fields: [{name: site}]}", where="test")
    assert definition_of(plain) is None and counter_names(plain) == ()


def test_by_default_the_first_two_fields_of_each_side_are_crossed() -> None:
    found = definition({})
    assert [c.field for c in found.topics] == ["genre", "kind"] and [c.field for c in found.attributes] == [
        "city",
        "sex",
    ]
    assert [(c.slots, c.allowed) for c in found.topics] == [(32, None), (2, ("a", "b"))]
    assert (found.click_delay, found.no_click_delay) == (600_000_000, 600_000_000)
    alone = definition({}, item=False)
    assert alone.topics == alone.attributes == () and all(n.startswith("user_") for n in alone.names)


def test_more_allowed_values_than_slots_are_hashed() -> None:
    found = definition({"topic_slots": 2, "topics": ["kind"]})
    assert found.topics[0].allowed == ("a", "b")
    many = schema_of({"topic_slots": 2}).model_dump(mode="json")
    many["fields"][2]["allowed"] = ["a", "b", "c"]
    assert definition_of(type(schema_of({})).model_validate(many)).topics[1].allowed is None  # type: ignore[union-attr]


CHANGES: list[dict[str, Any]] = [
    {"feedback_delay": 601},
    {"feedback_delay": {"click": 599}},
    {"feedback_delay": {"no_click": 599}},
    {"topics": ["genre"]},
    {"topics": ["kind", "genre"]},
    {"attributes": []},
    {"last": [3, 10]},
    {"windows": ["hour"]},
    {"topic_slots": 33},
    {"attribute_slots": 9},
]


def test_the_hash_is_that_of_everything_that_changes_a_value() -> None:
    hashes = [definition(change).hash for change in ({}, *CHANGES)]
    assert len(set(hashes)) == len(hashes)
    assert definition({"feedback_delay": "10m", "topics": ["genre", "kind"]}).hash == hashes[0]
    # Frozen: states and training sets of earlier versions must be told apart from those of this one. A change of a value needs
    # another FORMAT.
    assert hashes[0] == "4aece94b297d3145b48e686f8532fbf341c5b4cdbb3cea3101ac298cf0076598"


def test_the_page_on_evidence_names_every_counter() -> None:
    text = (Path(__file__).parents[3] / "docs" / "evidence.md").read_text("utf-8")
    example = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    content = {
        "name": "t", "time": {"column": "ts"}, "entities": {"user": {"key": "u"}, "item": {"key": "i"}}, **example,
        "fields": [{"name": n, "entity": e} for n, e in (("genre", "item"), ("gender", "user"), ("age", "user"))],
    }  # fmt: skip
    found = definition_of(parse_schema(yaml.safe_dump(content), where="docs"))
    assert found is not None and (found.click_delay, found.no_click_delay) == (30_000_000, 600_000_000)
    for name in found.names:
        pattern = re.sub(r"last_\d+$", "last_K", name).replace("x_genre", "x_TOPIC")
        pattern = re.sub(
            "x_(gender|age)", "x_ATTRIBUTE", re.sub("(residual|rate)_(hour|day|week)$", r"\1_WINDOW", pattern)
        )
        assert (
            f"`{re.sub('_views_(hour|day|week)$', '_views_...', pattern)}`" in text
            or f"`{pattern}`" in text
            or (re.fullmatch("user_views_(hour|day|week)", name) and "`user_views_hour`, `_day`, `_week`" in text)
        ), name


@given(
    instant=st.fixed_dictionaries(
        {},
        optional={
            "feedback_delay": st.integers(0, 7_776_000),
            "last": st.lists(st.integers(1, 200), unique=True, max_size=4),
            "windows": st.lists(st.sampled_from(["hour", "day", "week"]), unique=True),
            "topics": st.lists(st.sampled_from(["genre", "kind"]), unique=True),
        },
    ),
    days=st.none() | st.lists(st.integers(0, 400), unique=True, max_size=3),
)
def test_a_schema_is_the_same_after_it_was_written(instant: dict[str, Any], days: list[int] | None) -> None:
    content = schema_of(instant).model_dump(mode="json")
    content["statistics"] = {"instant": instant} | ({} if days is None else {"windows_days": days})
    schema = type(schema_of({})).model_validate(content)
    again = parse_schema(schema.to_yaml(), where="test")
    assert again == schema
    assert schema.statistics is not None and schema.statistics.windows_days == tuple(days or ())
    assert bool(schema.statistic_names("user")) == bool(days)
    assert any(spec.kind == "statistics" for spec in table_specs(schema)) == bool(days)


def test_statistics_of_days_alone_are_as_ever() -> None:
    schema = parse_schema(
        "{name: t, time: {column: ts}, entities: {user: {key: u}, item: {key: i}}, statistics: {}}", where="test"
    )
    assert schema.statistics is not None and schema.statistics.windows_days == (7, 0) and schema.instant is None
    assert schema.model_dump(mode="json", exclude_defaults=True)["statistics"] == {}


@pytest.mark.parametrize(
    ("instant", "message"),
    [
        ("{feedback_delay: tomorrow}", "'tomorrow' is not a duration: write whole seconds, or 30s, 10m, 6h or 1d"),
        ("{feedback_delay: -1}", "greater than or equal to 0"),
        ("{feedback_delay: true}", "is not a duration"),
        ("{feedback_delay: {click: 1.5}}", "valid integer"),
        ("{feedback_delay: {clicks: 5}}", "did you mean 'click'?"),
        ("{topics: [genres]}", "topics name 'genres', which is not a categorical item field; these are genre"),
        ("{topics: [price]}", "topics name 'price', which is not a categorical item field; these are genre"),
        ("{attributes: [genre]}", "which is not a categorical user field; these are none"),
        ("{topics: [genre, genre]}", "names a value twice"),
        ("{last: [0]}", "greater than or equal to 1"),
        ("{windows: [month]}", "choose one of hour, day, week"),
        ("{window: [hour]}", "did you mean 'windows'?"),
    ],
)
def test_what_cannot_be_counted_is_named(instant: str, message: str) -> None:
    text = (
        "{name: t, time: {column: ts}, entities: {user: {key: u}, item: {key: i}}, fields: [{name: genre, entity: item},"
        " {name: price, entity: item, kind: numeric}], statistics: {instant: %s}}"
    )
    with pytest.raises(SchemaError, match="statistics") as caught:
        parse_schema(text % instant, where="test")
    assert message in str(caught.value)


def test_a_log_without_users_and_items_has_nothing_to_count() -> None:
    with pytest.raises(SchemaError, match=r"needs entities\.user or entities\.item"):
        parse_schema("{name: t, time: {column: ts}, fields: [{name: site}], statistics: {instant: {}}}", where="test")
    with pytest.raises(SchemaError, match=r"topics need entities\.user and entities\.item"):
        parse_schema(
            "{name: t, time: {column: ts}, entities: {item: {key: i}}, fields: [{name: genre, entity: item}],"
            " statistics: {instant: {topics: [genre]}}}",
            where="test",
        )
