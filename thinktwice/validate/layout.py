"""The columns of a clean log and of its side tables, in order, and their types."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from thinktwice.schema.fields import EVENT_TIME, LABEL, ROW_ID, ROW_WEIGHT, VALID_FROM, columns_of
from thinktwice.schema.log import LogSchema
from thinktwice.validate.parse import PROPENSITY, TITLE, TRUTH, extra_columns


def clean_columns(schema: LogSchema) -> list[str]:
    """Names of the columns of a clean log. Fields of a side table are not among them."""
    keys = [entity.key for entity in (schema.entities.user, schema.entities.item) if entity is not None]
    fields = columns_of(schema.logged_fields) + [s.name for s in schema.logged_sequences]
    fields += [v.name for v in schema.logged_vectors]
    out = [ROW_ID, EVENT_TIME, LABEL, *keys, *fields]
    if schema.logged_title is not None:
        out.append(TITLE)
    return out + list(extra_columns(schema))


def clean_table_columns(schema: LogSchema, entity: Literal["user", "item"]) -> list[str]:
    """Names of the columns of a clean side table: row_id, the key, the time from which a row is valid, and what it describes."""
    key = schema.key_of(entity)
    assert key is not None
    fields = columns_of(schema.table_fields(entity)) + [s.name for s in schema.table_sequences(entity)]
    fields += [v.name for v in schema.table_vectors(entity)]
    return [ROW_ID, key, VALID_FROM, *fields, *([TITLE] if schema.table_title(entity) is not None else [])]


def arrow_schema(schema: LogSchema, names: list[str]) -> pa.Schema:
    """Arrow types of columns with these names."""
    numbers = {f.name for f in schema.fields if f.kind == "numeric"} | {PROPENSITY, TRUTH, ROW_WEIGHT}
    vectors = {v.name for v in schema.vectors}
    weights = {f.weights.name for f in schema.fields if f.weights is not None}
    lists = {f.name for f in schema.fields if f.kind == "list"} | {s.name for s in schema.sequences}
    time = pa.timestamp("us", tz="UTC")
    special = {EVENT_TIME: time, VALID_FROM: time, LABEL: pa.int8()}
    fields = []
    for name in names:
        if name in vectors:
            kind: pa.DataType = pa.list_(pa.float32())
        elif name in weights:
            kind = pa.list_(pa.float64())
        elif name in lists:
            kind = pa.list_(pa.string())
        else:
            kind = special.get(name) or (pa.float64() if name in numbers else pa.string())
        fields.append(pa.field(name, kind))
    return pa.schema(fields)
