"""One value of a field in every form that a request may have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from serving.protocol.v2_tensors import HEADER, NUMBERS, pack
from thinktwice.schema.limits import INTEGERS, is_inexact
from thinktwice.schema.values import spell

Body = Any  # bytes, or what a caller in Python hands over
Form = tuple[str, Body, dict[str, str]]  # name, body, headers


def rows_forms(field: str, kind: pa.DataType, value: Any) -> Iterator[Form]:
    """Requests for one raw row that has this value and no other."""
    yield "python", {"instances": [{"rows": [{field: value}]}]}, {}
    for name, own in json_values(value):
        row = {"rows": [{field: own}]}
        yield f"v1 {name}", json.dumps({"instances": [row]}).encode(), {}
        text = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [json.dumps(row)]}
        yield f"nested {name}", json.dumps({"inputs": [text]}).encode(), {}
    yield from tensor_forms(field, kind, value, [])


def context_forms(field: str, kind: pa.DataType, value: Any, one: dict[str, Any]) -> Iterator[Form]:
    """Requests ``one`` with this value in its context."""
    for name, own in json_values(value):
        asked = {**one, "context": {**one["context"], field: own}}
        yield f"v1 {name}", json.dumps({"instances": [asked]}).encode(), {}
    yield "python", {"instances": [{**one, "context": {**one["context"], field: value}}]}, {}
    others = [
        {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": [one["user_id"]]},
        {"name": "candidates", "datatype": "BYTES", "shape": [len(one["candidates"])], "data": one["candidates"]},
        *(
            {"name": name, "datatype": "FP64", "shape": [1], "data": [number]}
            for name, number in one["context"].items()
        ),
    ]
    yield from tensor_forms(field, kind, value, others)


def json_values(value: Any) -> Iterator[tuple[str, Any]]:
    """The value as JSON: as text, and as a number or boolean where JSON has it."""
    text = spell(value)
    yield ("text", text) if text is not None else ("null", None)
    if isinstance(value, bool):
        yield "truth", value
    elif isinstance(value, (int, np.integer)):
        yield "number", int(value)
    elif isinstance(value, (float, np.floating)) and np.isfinite(value):
        written = float(str(value)) if isinstance(value, np.floating) else value
        if not is_inexact(written) or is_inexact(value):
            yield "number", written
    elif isinstance(value, Decimal):
        if value == value.to_integral_value() and INTEGERS[0] <= value <= INTEGERS[1]:
            yield "number", int(value)
        elif spell(float(value)) == text:
            yield "number", float(value)


def datatype(kind: pa.DataType) -> str:
    """The datatype of a tensor that a client with such values sends."""
    if pa.types.is_boolean(kind):
        return "BOOL"
    if pa.types.is_integer(kind):
        return f"{'INT' if pa.types.is_signed_integer(kind) else 'UINT'}{kind.bit_width}"
    return f"FP{kind.bit_width}" if pa.types.is_floating(kind) else "BYTES"


def tensor_forms(field: str, kind: pa.DataType, value: Any, others: list[dict[str, Any]]) -> Iterator[Form]:
    """The value in a tensor of its own type, as JSON and as binary, beside other tensors."""
    typed = datatype(kind)
    narrow = {"FP16": np.float16, "FP32": np.float32}.get(typed)
    own = (spell(value) or "") if typed == "BYTES" else value
    tensor = {"name": field, "datatype": typed, "shape": [1]}
    if typed == "BYTES" or value is None or np.isfinite(value):
        shown = None if value is None else float(str(value)) if narrow is not None else own
        body = {"inputs": [*others, {**tensor, "data": [shown]}]}
        yield f"v2 {typed} JSON", json.dumps(body).encode(), {}
    if value is not None or typed == "BYTES" or typed.startswith("FP"):
        number = np.nan if value is None else value
        tail = pack("BYTES", [own]) if typed == "BYTES" else np.array([number], NUMBERS[typed]).tobytes()
        header = {**tensor, "parameters": {"binary_data_size": len(tail)}}
        text = json.dumps({"inputs": [*others, header]}).encode()
        yield f"v2 {typed} binary", text + tail, {HEADER: str(len(text))}
