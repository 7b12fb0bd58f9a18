"""The reference of the schema file, generated from its types: a page for readers and a JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from thinktwice.schema.fields import (
    Cross,
    ElementWeights,
    Entities,
    EntityKey,
    LabelColumn,
    LogField,
    Sequence,
    SideTable,
    SideTables,
    TimeColumn,
    ValidFrom,
    Vector,
)
from thinktwice.schema.log import LogSchema
from thinktwice.schema.statistics import FeedbackDelay, InstantStatistics, Statistics

#: Model -> where its mapping stands in the file, and key -> (what it means, an example of the key).
KEYS: dict[type[BaseModel], tuple[str, dict[str, tuple[str, str]]]] = {
    LogSchema: (
        "the file itself",
        {
            "name": ("Name of the log: lower-case letters, digits and '-'.", "name: shop"),
            "time": ("When the impression happened.", "time: {column: shown_at, format: datetime}"),
            "label": ("What a click is.", "label: {column: bought}"),
            "entities": ("The ids of users and items.", "entities: {user: {key: user}, item: {key: item}}"),
            "fields": ("The features of an impression.", "fields: [{name: device}]"),
            "crosses": ("Pairs of two categorical fields as categories of their own.", "crosses: [[device, item]]"),
            "sequences": ("The latest items of a user.", "sequences: [{name: recent_items, of: item, length: 20}]"),
            "vectors": ("Fixed vectors of users or items.", "vectors: [{name: look, dim: 4}]"),
            "tables": ("Side tables with the attributes of users and items.", "tables: {items: {path: items.csv}}"),
            "statistics": ("Counts and click rates of users and items.", "statistics: {windows_days: [7, 0]}"),
            "scenario": ("Name of the categorical field that names the scenario.", "scenario: device"),
            "propensity": ("Column with the probability with which this item was shown.", "propensity: pscore"),
            "truth": ("Column with the true click probability; simulated logs only.", "truth: probability"),
            "weight": ("Column with how much a row counts in training, at least 0.", "weight: importance"),
            "quarantine_budget": ("Maximum share of quarantined rows.", "quarantine_budget: 0.02"),
        },
    ),
    TimeColumn: (
        "time",
        {
            "column": ("The column; none for the format order.", "column: shown_at"),
            "format": (
                "Unix time in s, ms or us; datetime for text, dates and timestamps; yymmddhh; order for the order of rows.",
                "format: datetime",
            ),
            "zone": ("Time zone of times without an offset; default UTC.", "zone: Asia/Tokyo"),
        },
    ),
    LabelColumn: (
        "label",
        {
            "column": ("The column; its values are 0 and 1, or numbers with a threshold.", "column: rating"),
            "threshold": ("A value of at least this is a click.", "threshold: 4"),
        },
    ),
    Entities: (
        "entities",
        {
            "user": ("The user's id.", "user: {key: user, column: customer}"),
            "item": ("The item's id.", "item: {key: item, column: sku, title: product}"),
        },
    ),
    EntityKey: (
        "entities.user, entities.item",
        {
            "key": ("Name of the id in features and requests.", "key: user"),
            "column": ("Its column; default: the key.", "column: customer"),
            "as_field": ("Whether the id itself is an input of the model.", "as_field: false"),
            "title": ("Column with a name for display; no input of the model.", "title: product"),
            "anonymous": ("Of the user: rows and requests without an id are allowed; they train and get the vector of an unknown user.", "anonymous: true"),
        },
    ),
    LogField: (
        "fields",
        {
            "name": ("Name of the field in the model and in requests.", "name: price"),
            "kind": ("categorical; boolean for true and false, also written yes and no, or 1 and 0; numeric for numbers that are cut into bins; list for several categories in a row.", "kind: numeric"),
            "entity": ("Whose attribute it is: user, item, or context of the impression.", "entity: item"),
            "column": ("Its column; default: the name.", "column: price_eur"),
            "unit": ("Unit of a numeric field, for the data report; nothing is converted.", "unit: EUR"),
            "derived": ("hour or weekday of the impression's time, in the zone of the schema.", "derived: hour"),
            "nullable": ("Whether a missing value is allowed.", "nullable: false"),
            "allowed": ("Allowed values of a categorical field; others are quarantined.", "allowed: [red, blue]"),
            "minimum": ("Smallest allowed number.", "minimum: 0"),
            "maximum": ("Largest allowed number.", "maximum: 120"),
            "buckets": ("Number of bins of a numeric field.", "buckets: 16"),
            "boundaries": ("Bins of a numeric field: the numbers between them, instead of quantiles.", "boundaries: [10, 20, 50]"),
            "scale": ("log: the bins of a numeric field have equal widths on a logarithmic scale.", "scale: log"),
            "separator": ("Kind list: text between the categories, in a column of text (default |).", 'separator: ";"'),
            "length": ("Kind list: maximum number of categories, at most 200 (default 20).", "length: 50"),
            "weights": ("Kind list: column of the weights of its elements, parallel lists of numbers of at least 0, or text with the same separator. Its vector is then the weighted mean; a row without weights gives each element the weight 1.", "weights: tag_weights"),
            "min_count": ("Values that occur in fewer training rows count as unknown.", "min_count: 5"),
            "max_values": ("Only this many most frequent values are known; others count as unknown.", "max_values: 10000"),
            "protected": ("Whether the value is never masked at test time.", "protected: true"),
        },
    ),
    ElementWeights: (
        "fields.weights",
        {
            "name": ("Name of the weights in features and requests; weights: NAME is short for weights: {name: NAME}.", "name: tag_weights"),
            "column": ("Its column; default: the name.", "column: tag scores"),
        },
    ),
    Cross: (
        "crosses",
        {
            "name": ("Name of the cross; default: a_x_b for the fields a and b. [a, b] is short for {of: [a, b]}.", "name: city_x_device"),
            "of": ("The two categorical fields, keys and derived fields included, that it is computed from.", "of: [city, device]"),
            "min_count": ("Pairs that occur in fewer training rows count as unknown.", "min_count: 5"),
            "max_values": ("Only this many most frequent pairs are known.", "max_values: 10000"),
        },
    ),
    Sequence: (
        "sequences",
        {
            "name": ("Name of the sequence.", "name: recent_items"),
            "of": ("The categorical item field, or the item's key, whose values it contains.", "of: item"),
            "length": ("Number of values, newest first.", "length: 20"),
            "clicks_only": ("Only of clicked impressions.", "clicks_only: false"),
            "entity": ("With a column: user (default), the column is in the table of users if there is one, and the latest values are looked up for a request; or context, it is in the log, and a request sends the values.", "entity: context"),
            "column": ("A column that has the sequence already: a list, or text with a separator. Without it, it is computed from the log. With a table of users, a column of that table.", "column: history"),
            "separator": ("Text between the values of the column, if it is text (default |).", 'separator: ","'),
            "order": ("Order of the column: newest_first (default) or newest_last.", "order: newest_last"),
        },
    ),
    Vector: (
        "vectors",
        {
            "name": ("Name of the vector.", "name: look"),
            "entity": ("Whose vector it is.", "entity: user"),
            "column": ("Its list column; default: the name.", "column: image_embedding"),
            "dim": ("Number of its entries.", "dim: 64"),
        },
    ),
    SideTables: (
        "tables",
        {
            "users": ("The table of users. Their fields, vectors and sequences with a column are read from it and not from the log.", "users: {path: users.csv}"),
            "items": ("The table of items. Their fields, vectors and title are read from it and not from the log.", "items: {path: items.parquet, key: sku}"),
        },
    ),
    SideTable: (
        "tables.users, tables.items",
        {
            "path": ("Its file, or folder or pattern of files, relative to the folder of this file: parquet, CSV, TSV or JSON lines.", "path: items.csv"),
            "key": ("Its column of the id; default: the log's column.", "key: sku"),
            "valid_from": ("Column with the time from which a row is valid, until the next row of its key. Without it a key has one row, which is always valid.", "valid_from: since"),
        },
    ),
    ValidFrom: (
        "tables.users.valid_from, tables.items.valid_from",
        {
            "column": ("The column; valid_from: NAME is short for valid_from: {column: NAME}.", "column: since"),
            "format": ("As that of time; default: the same format.", "format: datetime"),
            "zone": ("Time zone of times without an offset; default: that of time.", "zone: Asia/Tokyo"),
        },
    ),
    Statistics: (
        "statistics",
        {
            "windows_days": ("Windows of whole days before the day of the impression; 0 is since the beginning.", "windows_days: [7, 0]"),
            "entities": ("Whose statistics.", "entities: [item]"),
            "buckets": ("Number of quantile bins of each statistic.", "buckets: 24"),
            "instant": ("Counters up to the instant of the impression.", "instant: {feedback_delay: 10m}"),
        },
    ),
    InstantStatistics: (
        "statistics.instant",
        {
            "feedback_delay": ("How long after an impression its outcome is known.", "feedback_delay: 10m"),
            "topics": ("Categorical item fields, for counters of a user per value.", "topics: [color]"),
            "attributes": ("Categorical user fields, for counters of an item per value.", "attributes: [gender]"),
            "last": ("Numbers of latest outcomes.", "last: [3, 10, 50]"),
            "windows": ("Windows: hour, day, week.", "windows: [hour, day]"),
            "topic_slots": ("Slots for the values of a topic.", "topic_slots: 32"),
            "attribute_slots": ("Slots for the values of an attribute.", "attribute_slots: 8"),
        },
    ),
    FeedbackDelay: (
        "statistics.instant.feedback_delay",
        {
            "click": ("Delay of a click, in seconds or as 30s, 10m, 6h, 1d.", "click: 30s"),
            "no_click": ("Time after which a missing click is a non-click.", "no_click: 10m"),
        },
    ),
}  # fmt: skip


def reference_page() -> str:
    """The page ``docs/schema.md``."""
    lines = [
        "# Schema file",
        "",
        "All keys of a schema file. This page is generated from the types by `thinktwice data schema-reference`, and `--json` writes a JSON Schema for",
        "editors. Other keys are an error that names the nearest one. A key without a default is required.",
    ]
    for model, (where, keys) in KEYS.items():
        lines += ["", f"## {where}", "", "| key | meaning | default | example |", "| --- | --- | --- | --- |"]
        for key, (meaning, example) in keys.items():
            lines.append(f"| `{key}` | {meaning} | {_default(model, key)} | `{example}` |")
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """A JSON Schema of the file, with the meaning of every key as its description."""
    schema = LogSchema.model_json_schema()
    for model, properties in _definitions(schema):
        for key, (meaning, example) in KEYS[model][1].items():
            properties[key] |= {"description": f"{meaning} Example: {example}"}
    # What the loader accepts besides: durations as text, one duration for both delays, and values that YAML reads as no text.
    duration = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]{1,9} ?[smhd]?$"}]}
    definitions = schema["$defs"]
    for key in ("click", "no_click"):
        of = definitions["FeedbackDelay"]["properties"][key]
        definitions["FeedbackDelay"]["properties"][key] = duration | {"description": of["description"], "default": 600}
    instant = definitions["InstantStatistics"]["properties"]
    described = instant["feedback_delay"]["description"]
    instant["feedback_delay"] = {
        "anyOf": [*duration["anyOf"], {"$ref": "#/$defs/FeedbackDelay"}],
        "description": described,
    }
    valid_from = definitions["SideTable"]["properties"]["valid_from"]
    valid_from["anyOf"] = [{"type": "string", "minLength": 1}, *valid_from["anyOf"]]
    crosses = schema["properties"]["crosses"]
    crosses["items"] = {
        "anyOf": [
            {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
            {"$ref": "#/$defs/Cross"},
        ]
    }
    definitions["Cross"]["required"] = ["of"]
    weights = definitions["LogField"]["properties"]["weights"]
    weights["anyOf"] = [{"type": "string", "minLength": 1}, *weights["anyOf"]]
    allowed = definitions["LogField"]["properties"]["allowed"]
    allowed["anyOf"][0]["items"] = {"type": ["string", "number", "boolean"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _definitions(schema: dict[str, Any]) -> Iterator[tuple[type[BaseModel], dict[str, Any]]]:
    for model in KEYS:
        definition = schema if model is LogSchema else schema["$defs"][model.__name__]
        yield model, definition["properties"]


def _default(model: type[BaseModel], key: str) -> str:
    default = model.model_fields[key].default
    if default is PydanticUndefined:
        return ""
    if default is None or default == ():
        return "none"
    if isinstance(default, BaseModel):
        return ", ".join(f"`{name}: {value}`" for name, value in default if value is not None) or "none"
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
