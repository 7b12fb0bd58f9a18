"""Source columns named by a schema, what is read from them, and the types that each use can be read from.

Only the listed types are supported; other types are refused with one message, before a row is read.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.types as pt

from thinktwice.errors import SchemaError, guessed
from thinktwice.schema.fields import LogField, Sequence, Vector
from thinktwice.schema.log import LogSchema
from thinktwice.schema.times import is_time
from thinktwice.schema.values import can_spell

#: Use of a column: a time, a number (including the label), the text of an id or a category, or a list of numbers
#: (a vector, or the weights of a list) or of categories.
Kind = Literal["time", "number", "category", "list", "vector", "weights"]


class Use(NamedTuple):
    """One use of a column; ``words``: its description in messages."""

    kind: Kind
    words: str


READ = {
    "time": "timestamps, dates, integers, floats, decimals and text",
    "number": "integers, floats, decimals, booleans and text",
    "category": "text, bytes, integers, floats, decimals, booleans, dates, times, timestamps and durations",
    "list": "lists of ids or categories, and text with a separator",
    "vector": "lists of numbers and text",
    "weights": "lists of numbers, and text with the separator of the list",
}


#: Named source columns with all their uses.
Named = Mapping[str, tuple[Use, ...]]


def named_columns(schema: LogSchema) -> dict[str, tuple[Use, ...]]:
    """Every source column of the log that a schema names, in schema order, with all its uses."""
    uses = _Uses()
    uses.add(schema.time.column, "time", "time")
    uses.add(schema.label.column, "number", "label")
    for name, entity in (("user", schema.entities.user), ("item", schema.entities.item)):
        if entity is not None:
            uses.add(entity.source_column, "category", f"{name} id")
            uses.add(schema.logged_title if name == "item" else entity.title, "category", f"{name} title")
    uses.add_fields(schema.logged_fields, schema.logged_vectors, schema.logged_sequences)
    uses.add(schema.propensity, "number", "propensity")
    uses.add(schema.truth, "number", "truth")
    uses.add(schema.weight, "number", "weight")
    return uses.all()


def table_columns(schema: LogSchema, entity: Literal["user", "item"]) -> dict[str, tuple[Use, ...]]:
    """Every column of a side table that a schema names, with all its uses."""
    uses = _Uses()
    uses.add(schema.table_key(entity), "category", f"{entity} id")
    valid_from = schema.valid_from(entity)
    uses.add(None if valid_from is None else valid_from.column, "time", "valid_from")
    uses.add(schema.table_title(entity), "category", f"{entity} title")
    uses.add_fields(schema.table_fields(entity), schema.table_vectors(entity), schema.table_sequences(entity))
    return uses.all()


_KIND: dict[str, Kind] = {"categorical": "category", "boolean": "category", "numeric": "number", "list": "list"}


class _Uses:
    """Collects the uses of columns."""

    def __init__(self) -> None:
        self._uses: dict[str, list[Use]] = {}

    def add(self, column: str | None, kind: Kind, words: str) -> None:
        if column is not None:
            self._uses.setdefault(column, []).append(Use(kind, words))

    def add_fields(
        self, fields: tuple[LogField, ...], vectors: tuple[Vector, ...], sequences: tuple[Sequence, ...]
    ) -> None:
        for field in fields:
            if field.derived is None:
                self.add(field.source_column, _KIND[field.kind], f"field {field.name!r}")
            if field.weights is not None:
                self.add(field.weights.source_column, "weights", f"weights of field {field.name!r}")
        for vector in vectors:
            self.add(vector.source_column, "vector", f"vector {vector.name!r}")
        for sequence in sequences:
            self.add(sequence.column, "list", f"sequence {sequence.name!r}")

    def all(self) -> dict[str, tuple[Use, ...]]:
        return {column: tuple(uses) for column, uses in self._uses.items()}


def check_columns(schema: LogSchema, columns: pa.Schema, where: str) -> None:
    """Refuse a schema that names a column that the log lacks, has twice, or has in an unsupported type.

    Raises:
        SchemaError: names the column, its use, and the nearest name and all columns, or the type and the supported types.
    """
    check_named(named_columns(schema), schema.name, columns, where)


def check_named(named: Named, schema_name: str, columns: pa.Schema, where: str) -> None:
    """Like :func:`check_columns`, for the named columns of any file of a log."""
    for column, uses in named.items():
        count = columns.names.count(column)
        if not count:
            partition = f"{column}=" in where
            hint = (
                f"the folder '{column}=…' is read as a column only below the given path: give the path above it; "
                if partition
                else "correct the schema's 'column': "
            )
            raise SchemaError(
                f"schema {schema_name!r} does not fit {where}: its {uses[0].words} wants column {column!r}, which does not exist; "
                f"{hint}{known_column(column, columns.names)}"
            )
        if count > 1:
            raise SchemaError(twice(column, where))
        for use in uses:
            refuse_type(column, columns.field(column).type, use, where)


def twice(column: str, where: str) -> str:
    """The message about a column that a file has twice."""
    return f"column {column!r} appears twice in {where}: keep one of them, or give them different names"


def refuse_type(column: str, kind: pa.DataType, use: Use, where: str) -> None:
    """Raise SchemaError when ``use`` cannot be read from a column of this type."""
    if not is_read(kind, use.kind):
        raise SchemaError(
            f"column {column!r} of {where} has type {kind}, from which the {use.words} cannot be read: "
            f"{READ[use.kind]} are read; write it as one of these, or leave it out of the schema"
        )


def known_column(name: str, columns: list[str]) -> str:
    """End of a message about a missing column, after a colon or semicolon: the nearest name, if there is one, and all columns."""
    close = difflib.get_close_matches(name, columns, n=1, cutoff=0.6)
    listed = ", ".join(map(_shown, columns[:40])) + (", …" if len(columns) > 40 else "")
    return guessed([repr(name) for name in close], f"the columns are: {listed}")


def _shown(name: str) -> str:
    """A column's name for a message: a wrongly detected header may contain anything."""
    plain = "".join(c if c.isprintable() else "�" for c in name[:60])
    return plain + ("…" if len(name) > 60 else "")


def is_read(kind: pa.DataType, use: Kind) -> bool:
    """Whether ``use`` can be read from a column of this arrow type."""
    if use == "category":
        return can_spell(kind)
    kind = stored(kind)
    if use == "list":
        return pt.is_null(kind) or is_text(kind) or (_is_list(kind) and can_spell(kind.value_type))
    if pt.is_null(kind) or is_text(kind) or (is_bytes(kind) and use not in ("vector", "weights")):
        return True
    if use == "weights":
        of = stored(kind.value_type) if _is_list(kind) else None
        return of is not None and (pt.is_null(of) or pt.is_boolean(of) or _is_number(of) or is_text(of))
    if use == "vector":
        return _is_list(kind) and (
            pt.is_null(kind.value_type) or pt.is_boolean(kind.value_type) or _is_number(kind.value_type)
        )
    return _is_number(kind) or (pt.is_boolean(kind) if use == "number" else is_time(kind))


def stored(kind: pa.DataType) -> pa.DataType:
    """The type of the values behind dictionaries, runs and extension types."""
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return stored(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return stored(kind.storage_type)
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether the values are text."""
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the values are bytes."""
    return bool(
        pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind) or pt.is_fixed_size_binary(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind))
