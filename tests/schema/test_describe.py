"""Every field explains itself: what it is, its unit, its zone and where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinktwice.cli import main
from thinktwice.data.sources.registry import SOURCES, builtin_schema_text
from thinktwice.errors import DataError
from thinktwice.schema import LogSchema, parse_schema
from thinktwice.schema.describe import field_words, time_words

TEXT = """\
name: shop
time: {column: shown_at, format: datetime, zone: Asia/Tokyo}
label: {column: bought}
entities:
  user: {key: user, column: customer, as_field: false}
  item: {key: item, column: sku}
tables: {items: {path: items.csv}}
fields:
  - {name: price, kind: numeric, column: price_eur, unit: EUR, entity: item}
  - {name: device}
  - {name: moods, kind: list}
  - {name: when, derived: hour}
  - {name: day, derived: weekday}
sequences:
  - {name: recent, of: item, length: 5}
  - {name: seen, of: item, length: 6, clicks_only: false}
  - {name: history, of: item, column: past, order: newest_last, length: 7}
vectors: [{name: look, dim: 4}]
statistics: {windows_days: [7, 0], entities: [item]}
"""
EXPECTED = {
    "user": "id of the user, from column customer, no input of the model",
    "item": "id of the item, from column sku",
    "price": "number in EUR, attribute of the item, from column price_eur of the table of items",
    "device": "category, context of the impression, from column device",
    "moods": "list of categories, context of the impression, from column moods",
    "when": "category 0 to 23: the hour of the impression's time (column shown_at, dates or timestamps, zone Asia/Tokyo); a request "
    "sends the time, not this field",
    "day": "category 0 (Monday) to 6: the weekday of the impression's time (column shown_at, dates or timestamps, zone Asia/Tokyo); "
    "a request sends the time, not this field",
    "recent": "the 5 latest values of item that the user has clicked, computed from earlier impressions",
    "seen": "the 6 latest values of item that the user has seen, computed from earlier impressions",
    "history": "the 7 newest values of item, attribute of the user, from column past (newest last)",
    "look": "vector of 4 numbers, attribute of the item, from column look of the table of items",
    "item_views_7d": "number of impressions of the item of the last 7 days, before the day of the impression (days of UTC), computed "
    "from the log",
    "item_rate_7d": "click rate of the item of the last 7 days, before the day of the impression (days of UTC), computed from the log",
    "item_views_all": "number of impressions of the item since the beginning of the log, before the day of the impression (days of "
    "UTC), computed from the log",
    "item_rate_all": "click rate of the item since the beginning of the log, before the day of the impression (days of UTC), computed "
    "from the log",
}


def test_every_kind_of_field() -> None:
    assert field_words(parse_schema(TEXT, where="test")) == EXPECTED


def builtin() -> list[tuple[str, LogSchema]]:
    found = []
    for name in SOURCES:
        try:
            found.append((name, parse_schema(builtin_schema_text(name), where=name)))
        except DataError:
            assert not SOURCES[name].has_schema
    return found


@pytest.mark.parametrize("name", [name for name, _ in builtin()])
def test_every_input_of_every_built_in_model(name: str) -> None:
    schema = dict(builtin())[name]
    assert {field.name for field in schema.model_fields_in_order()} <= set(field_words(schema))
    zone = schema.time.zone or "UTC"
    assert schema.time.column is None or zone in time_words(schema)


@pytest.mark.parametrize(
    ("zone", "words"), [("", "zone UTC (none is set)"), (", zone: Europe/Rome", "zone Europe/Rome")]
)
@pytest.mark.parametrize("form", ["s", "ms", "us", "datetime", "yymmddhh"])
def test_times(form: str, zone: str, words: str) -> None:
    schema = parse_schema(f"name: a\ntime: {{column: t, format: {form}{zone}}}\nfields: [{{name: x}}]", where="test")
    assert time_words(schema).startswith("column t, ") and time_words(schema).endswith(words)
    assert time_words(parse_schema("name: a\ntime: {format: order}\nfields: [{name: x}]", where="t")).startswith(
        "the order"
    )


@given(st.text(min_size=1, max_size=30))
def test_a_unit_is_one_line_and_of_a_number(unit: str) -> None:
    field = {"name": "x", "kind": "numeric", "unit": unit}
    if unit.isprintable():
        assert f"number in {unit}," in field_words(_with(field))["x"]
    else:
        with pytest.raises(ValueError, match="unit"):
            _with(field)
    with pytest.raises(ValueError, match="numeric field"):
        _with({**field, "kind": "categorical"})


def _with(field: dict[str, str]) -> LogSchema:
    return LogSchema.model_validate({"name": "a", "time": {"format": "order"}, "fields": [field]})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shop.yaml").write_text(TEXT)
    assert main(["data", "fields", str(tmp_path / "shop.yaml")]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert all(f"{name} {words}" in shown for name, words in EXPECTED.items())
    assert "time column shown_at, dates or timestamps, zone Asia/Tokyo" in shown
    assert main(["data", "fields", "ml-100k"]) == 0
    assert "hour" in capsys.readouterr().out
    assert main(["data", "fields", str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
