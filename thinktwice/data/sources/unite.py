"""Common layout of the files of a log: which columns are read, as which type, and which are left out.

A column that the schema names must exist once, with a readable type, and its types must be compatible across all files.
Other columns are kept if a wider type is enough, and left out otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from thinktwice.data.sources.parquet_files import batches, short
from thinktwice.errors import DataError, SchemaError
from thinktwice.schema.columns import Named, Use, is_bytes, is_text, refuse_type, stored, twice
from thinktwice.storage.object_path import AnyPath

WHOLE = 2**53  # floats represent every integer up to here exactly


@dataclass(frozen=True)
class ColumnLayout:
    """``columns`` to read, columns of the files that are left out, and named columns that a file lacks, with the reason."""

    columns: pa.Schema
    left_out: dict[str, str]
    missing: dict[str, str]


def unite(files: Mapping[AnyPath, pa.Schema], named: Named) -> ColumnLayout:
    """The layout of files with these arrow schemas.

    Raises:
        SchemaError: a named column is repeated, has an unsupported type, or incompatible types.
        DataError: a file is damaged.
    """
    files_by_column: dict[str, dict[AnyPath, pa.DataType]] = {}
    left_out: dict[str, str] = {}
    for file, schema in files.items():
        several = {n for n in schema.names if schema.names.count(n) > 1} if _repeats(schema) else set()
        for number, name in enumerate(schema.names):
            if name not in several:
                files_by_column.setdefault(name, {})[file] = schema.field(number).type
            elif name in named:
                raise SchemaError(twice(name, str(file)))
            else:
                left_out[name] = f"twice in {file.name}"
    fields = []
    for name, types in files_by_column.items():
        if name in left_out:
            continue
        if name in named:
            fields.append(pa.field(name, _named_type(name, types, named[name])))
            continue
        common = reduce(_wider, map(_decoded, types.values()))
        if common is None:
            left_out[name] = "of incompatible types: " + _words(types)
        else:
            fields.append(pa.field(name, common))
    layout = ColumnLayout(pa.schema(fields), left_out, _missing(files, named))
    for name, types in files_by_column.items():
        if name in named:
            _check_values(name, types, layout.columns.field(name).type, named[name])
    return layout


def _missing(files: Mapping[AnyPath, pa.Schema], named: Named) -> dict[str, str]:
    """Named columns that some files lack. A file with none of the named columns is refused: it belongs to another log."""
    missing: dict[str, str] = {}
    have = {file: set(schema.names) & set(named) for file, schema in files.items()}
    everywhere = set().union(*have.values())
    for file, names in have.items():
        if everywhere and not names:
            raise SchemaError(
                f"{file} has none of the columns that the schema names ({', '.join(sorted(everywhere))}): move it out of the folder"
            )
        for name in sorted(everywhere - names):
            missing.setdefault(name, f"not in {file.name}")
    return missing


def shaped(batch: pa.RecordBatch, columns: pa.Schema, file: AnyPath) -> pa.Table:
    """The columns of a layout in its order; a column that the file lacks is null.

    Raises:
        DataError: a value does not fit the type of the layout.
    """
    arrays = []
    for field in columns:
        index = batch.schema.get_field_index(field.name)
        if index < 0:
            arrays.append(pa.nulls(batch.num_rows, field.type))
            continue
        try:
            arrays.append(_as_type(plain(batch.column(index)), field.type))
        except pa.ArrowException as error:
            raise DataError(
                f"column {field.name!r} of {file} does not fit the type {field.type} common to all files "
                f"({short(error)}): write it with one type in every file"
            ) from error
    return pa.table(arrays, schema=columns)


def plain(array: pa.Array) -> pa.Array:
    """The values of an array without a dictionary or runs."""
    if pt.is_dictionary(array.type):
        return plain(array.dictionary_decode())
    if pt.is_run_end_encoded(array.type):
        return plain(pc.run_end_decode(array))
    return array


def _decoded(kind: pa.DataType) -> pa.DataType:
    """The type of :func:`plain` values."""
    return _decoded(kind.value_type) if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind) else kind


def _repeats(schema: pa.Schema) -> bool:
    return len(set(schema.names)) < len(schema.names)


def _named_type(name: str, types: dict[AnyPath, pa.DataType], uses: tuple[Use, ...]) -> pa.DataType:
    for file, kind in types.items():
        for use in uses:
            refuse_type(name, kind, use, str(file))
    decoded = [_decoded(kind) for kind in types.values()]
    if any(not kind.equals(decoded[0]) for kind in decoded):
        decoded = [stored(kind) for kind in decoded]
    numbers_alone = all(use.kind == "number" for use in uses)
    joined = reduce(_common_type, decoded[1:], decoded[0])
    if joined is None and numbers_alone and all(_is_numeric(kind) for kind in decoded):
        joined = pa.float64()
    if joined is None:
        raise SchemaError(f"column {name!r} is {_words(types)}: write it with one type in every file")
    return joined


def _common_type(first: pa.DataType | None, second: pa.DataType) -> pa.DataType | None:
    """The type for values of both; None if there is none. Whether the values fit is checked later."""
    if first is None:
        return None
    wider = _wider(first, second)
    if wider is not None:
        return wider
    if pt.is_integer(first) and pt.is_integer(second):
        return pa.int64()  # uint64 beside a signed one
    if _is_whole_or_float(first) and _is_whole_or_float(second):
        return pa.float64()
    if pt.is_timestamp(first) and pt.is_timestamp(second):
        return _common_timestamp(first, second)
    return None


def _wider(first: pa.DataType | None, second: pa.DataType) -> pa.DataType | None:
    """The type that represents every value of both types exactly; None if there is none."""
    if first is None or first.equals(second):
        return first
    if pt.is_null(first) or pt.is_null(second):
        return second if pt.is_null(first) else first
    if is_text(first) and is_text(second):
        return pa.large_string() if pa.large_string() in (first, second) else pa.string()
    if is_bytes(first) and is_bytes(second):
        return pa.large_binary() if pa.large_binary() in (first, second) else pa.binary()
    if pt.is_integer(first) and pt.is_integer(second):
        return _wider_integer(first, second)
    if pt.is_floating(first) and pt.is_floating(second):
        return first if first.bit_width > second.bit_width else second
    if pt.is_decimal(first) and pt.is_decimal(second):
        return _wider_decimal(first, second)
    if pt.is_date(first) and pt.is_date(second):
        return pa.date32()
    if pt.is_timestamp(first) and pt.is_timestamp(second) and first.unit == second.unit:
        return _common_timestamp(first, second)
    if _is_list(first) and _is_list(second):
        inner = _wider(first.value_type, second.value_type)
        return None if inner is None else pa.list_(inner)
    return None


def _wider_integer(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if pt.is_signed_integer(first) == pt.is_signed_integer(second):
        return first if first.bit_width > second.bit_width else second
    unsigned, signed = (second, first) if pt.is_signed_integer(first) else (first, second)
    width = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(width)


def _wider_decimal(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    scale = max(first.scale, second.scale)
    precision = max(first.precision - first.scale, second.precision - second.scale) + scale
    return pa.decimal128(precision, scale) if precision <= 38 else None


def _common_timestamp(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if (first.tz is None) != (second.tz is None):
        return None  # the files do not define the instants of times without a zone
    units = ("s", "ms", "us", "ns")
    unit = max(first.unit, second.unit, key=units.index)
    return pa.timestamp(unit, first.tz if first.tz == second.tz else "UTC")


def _check_values(name: str, types: dict[AnyPath, pa.DataType], target: pa.DataType, uses: tuple[Use, ...]) -> None:
    """Check the values of a named column if its type does not guarantee that they fit; nothing is written yet."""
    stored_types = [stored(kind) for kind in types.values()]
    mixed = any(map(pt.is_integer, stored_types)) and any(map(pt.is_floating, stored_types))
    exact = mixed and any(use.kind != "number" for use in uses)
    for file, kind in types.items():
        if _decoded(kind).equals(target) and not exact:
            continue
        if exact and (beyond := _beyond(file, name)) is not None:
            raise SchemaError(
                f"column {name!r} is {_words(types)}, and {beyond} in {file.name} does not fit: ids above 2^53 "
                f"({WHOLE:,}) have no exact float; write the column with one type in every file"
            )
        for array in _values(file, name):
            try:
                _as_type(array, target)
            except pa.ArrowException as error:
                raise SchemaError(
                    f"column {name!r} is {_words(types)}, and a value in {file.name} does not fit ({short(error)}): "
                    "write the column with one type in every file"
                ) from error


def _beyond(file: AnyPath, name: str) -> int | None:
    """An integer of the column that a float cannot represent exactly, or that may have been rounded to one."""
    for array in _values(file, name):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array
        if pt.is_floating(array.type):
            array = pc.cast(array, pa.float64())
            array = array.filter(pc.fill_null(pc.is_finite(array), False))
        bounds = pc.min_max(array).as_py()
        for value in (bounds["min"], bounds["max"]):
            if value is not None and (abs(value) > WHOLE or (isinstance(value, float) and abs(value) == WHOLE)):
                return int(value)
    return None


def _values(file: AnyPath, name: str) -> Iterator[pa.Array]:
    for batch in batches(file, [name]):
        yield plain(batch.column(batch.schema.get_field_index(name)))


def _as_type(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type.equals(kind):
        return array
    if isinstance(array, pa.ExtensionArray):
        return _as_type(array.storage, kind)
    if pt.is_floating(array.type) and array.type.bit_width < 64 and kind.equals(pa.float64()):
        # By its shortest decimal form: 0.1 stored in 32 bits is the 0.1 of the other files, not 0.10000000149.
        return pc.cast(pc.cast(pc.cast(array, pa.float32()), pa.string()), kind)
    if pt.is_integer(array.type) and pt.is_floating(kind):
        return pc.cast(array, kind, safe=False)  # ids were checked; measured numbers may lose their last digits
    if pt.is_decimal(array.type) and pt.is_floating(kind):
        return pc.cast(array, kind, safe=False)
    return pc.cast(array, kind)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _is_whole_or_float(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind))


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(_is_whole_or_float(kind) or pt.is_decimal(kind) or pt.is_boolean(kind))


def _words(types: Mapping[AnyPath, pa.DataType]) -> str:
    """``integer (int64) in a.parquet and float (double) in b.parquet``: each type with the first file that has it."""
    first_spelling: dict[str, str] = {}
    for file, kind in types.items():
        first_spelling.setdefault(_type_words(stored(kind)), file.name)
    return " and ".join(f"{words} in {name}" for words, name in first_spelling.items())


def _type_words(kind: pa.DataType) -> str:
    for is_one, word in (
        (pt.is_integer, "integer"),
        (pt.is_floating, "float"),
        (pt.is_decimal, "decimal"),
        (is_text, "text"),
        (is_bytes, "bytes"),
        (_is_list, "list"),
    ):
        if is_one(kind):
            return f"{word} ({kind})"
    if pt.is_timestamp(kind):
        return f"a timestamp with zone {kind.tz}" if kind.tz else "a timestamp without a zone"
    return str(kind)
