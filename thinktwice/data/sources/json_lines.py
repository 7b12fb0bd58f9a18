"""JSON lines files of a user's own log: one object per line, plain or gzipped, read in blocks of bounded memory.

The type of a column follows from all its values: integers, numbers, booleans, text, or lists of integers, numbers or text. A column of mixed types
becomes text, with the spelling that an id or category has in every log (:mod:`thinktwice.schema.values`), so that 42, 42.0 and
``"42"`` stay one id. A line that is not one JSON object is unparsable; it is kept with its text and line number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from thinktwice.data.reading import Chunk, Unparsable
from thinktwice.data.sources.text import Opener, blocks
from thinktwice.schema.values import spell

_INT64 = range(-(2**63), 2**63)
_EXACT = 2**53  # larger integers have no exact float
Row = dict[str, Any]


def column_kinds(open_stream: Opener, where: str) -> dict[str, set[str]]:
    """The kinds of values of every key of the file, in order of first appearance. Reads the whole file."""
    kinds: dict[str, set[str]] = {}
    for _, rows, _, _ in _parsed_blocks(open_stream, where, 0):
        for row in rows:
            for key, value in row.items():
                kind = _kind(value)
                known = kinds.get(key)
                if known is None:
                    kinds[key] = {kind} if kind else set()
                elif kind and kind not in known:
                    known.add(kind)
    return kinds


def column_type(kinds: set[str]) -> pa.DataType:
    """The arrow type of a column with values of these kinds."""
    if not kinds:
        return pa.null()
    if kinds == {"boolean"}:
        return pa.bool_()
    if kinds <= {"integer", "integer beyond 2^53"}:
        return pa.int64()
    if kinds <= {"number", "integer"}:
        return pa.float64()
    lists = kinds - {"empty list"}
    if lists == {"integers"}:
        return pa.list_(pa.int64())
    if lists <= {"integers", "numbers"}:
        return pa.list_(pa.float64())
    return pa.list_(pa.string()) if lists <= {"integers", "numbers", "texts"} else pa.string()


def read_json_lines(open_stream: Opener, where: str, columns: pa.Schema, start: int = 0) -> Iterator[Chunk]:
    """The lines as chunks of ``columns``; a key that an object lacks is null. ``start`` numbers the first line."""
    convert = {field.name: _converter(field.type) for field in columns}
    for first, rows, ordinals, unparsable in _parsed_blocks(open_stream, where, start):
        arrays = [pa.array([convert[field.name](row.get(field.name)) for row in rows], field.type) for field in columns]
        table = pa.table(arrays, schema=columns) if rows else columns.empty_table()
        yield Chunk(table, np.array(ordinals, np.int64) + first, tuple(unparsable))


def _parsed_blocks(
    open_stream: Opener, where: str, start: int
) -> Iterator[tuple[int, list[Row], list[int], list[Unparsable]]]:
    """(number of the first record, objects, their numbers from that one, unparsable lines) of each block."""
    line_number = 0
    for block in blocks(open_stream, where):
        rows: list[Row] = []
        ordinals: list[int] = []
        unparsable: list[Unparsable] = []
        records = 0
        for line in block.split(b"\n"):
            line_number += 1
            if not line.strip():
                continue
            row = _parsed(line)
            if isinstance(row, dict):
                rows.append(row)
                ordinals.append(records)
            else:
                text = line.decode("utf-8", errors="backslashreplace")
                unparsable.append(Unparsable(start + records, text, f"line {line_number}: {row}"))
            records += 1
        yield start, rows, ordinals, unparsable
        start += records


class _RepeatedKeyError(ValueError):
    """Which of the two values is meant, nobody can know."""


def _different_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return row


def _parsed(line: bytes) -> Row | str:
    """The object of a line, or why there is none."""
    try:
        value = json.loads(line, object_pairs_hook=_different_keys)
    except _RepeatedKeyError as error:
        return f"its key {error.args[0]!r} appears twice"
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} is not UTF-8 text"
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({str(error)[:120]})"
    return value if isinstance(value, dict) else f"it is a {type(value).__name__} and not a JSON object"


def _kind(value: Any) -> str:
    """The kind of a value; "" for a missing one."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        if value not in _INT64:
            return "large integer"
        return "integer" if abs(value) <= _EXACT else "integer beyond 2^53"
    if isinstance(value, float):
        return "number"
    if isinstance(value, list):
        return _kind_of_list(value)
    return "text" if isinstance(value, str) else "nested"


def _kind_of_list(values: list[Any]) -> str:
    kinds = {_kind(value) for value in values} - {""}
    if not kinds:
        return "empty list"
    if kinds <= {"integer", "integer beyond 2^53"}:
        return "integers"
    if kinds <= {"number", "integer"}:
        return "numbers"
    return (
        "texts"
        if kinds <= {"text", "boolean", "number", "integer", "integer beyond 2^53", "large integer"}
        else "nested"
    )


def _converter(kind: pa.DataType) -> Callable[[Any], Any]:
    if pa.types.is_string(kind):
        return _text
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return lambda value: None if value is None else [_text(element) for element in value]
    if pa.types.is_floating(kind):
        return lambda value: None if value is None else float(value)
    return lambda value: value


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        if value is not None and not value.isascii():
            return value.encode("utf-8", errors="replace").decode("utf-8")  # half of a surrogate pair is not text
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return spell(value)
