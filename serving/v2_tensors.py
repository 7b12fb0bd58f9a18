"""Open Inference v2 tensors: as JSON or as binary behind it, and requests given by one tensor per field instead of JSON text.

Two natural forms beside the tensor ``request``:

* candidates: ``candidates`` BYTES [n], ``user_id`` BYTES [1], context fields [1] each; ``k`` and ``deadline_ms`` in the
  parameters of the body.
* raw rows: one tensor [n] per field, vectors [n, dim], sequences [n, length] whose rows end with empty strings.

In a binary body the header ``Inference-Header-Content-Length`` says where its JSON ends; the data of the tensors with
``binary_data_size`` follow it in their order. Elements of BYTES are four bytes of length, little endian, and that many bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.requests import MAX_CANDIDATES
from thinktwice.errors import RequestError

HEADER = "inference-header-content-length"
SIZE, WANTED, WANTED_ALL = "binary_data_size", "binary_data", "binary_data_output"
NUMBERS = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8", "BOOL": "?"}
DATATYPES = (*NUMBERS, "BYTES")
FEW = 64  # tensors of a body


@dataclass(frozen=True)
class Tensor:
    """One input: values in row order, as many as the shape says."""

    name: str
    shape: tuple[int, ...]
    values: list[Any]


def split(raw: bytes, length: str | None) -> tuple[bytes, bytes]:
    """The JSON of a body and what follows it; ``length`` is the value of the header, None without one.

    Raises:
        RequestError: the header is no length within the body.
    """
    if length is None:
        return raw, b""
    if not length.isascii() or not length.isdigit() or int(length) > len(raw):
        raise RequestError(
            f"header {HEADER} must be a number of bytes up to {len(raw)}, the size of the body", field=HEADER
        )
    return raw[: int(length)], raw[int(length) :]


def read(inputs: Any, tail: bytes) -> list[Tensor]:
    """The tensors of a body; ``tail`` holds the binary ones.

    Raises:
        RequestError: naming the first input that is wrong.
    """
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= FEW:
        raise RequestError(f"inputs must be a list of 1 to {FEW} tensors", field="inputs")
    out, at = [], 0
    for number, value in enumerate(inputs):
        path = f"inputs[{number}]"
        if not isinstance(value, dict):
            raise RequestError(f"{path} must be an object", field=path)
        name, datatype = value.get("name"), value.get("datatype")
        if not isinstance(name, str) or not name:
            raise RequestError(f"{path}.name must be a name", field=f"{path}.name")
        if datatype not in DATATYPES:
            raise RequestError(f"{path}.datatype must be one of {', '.join(DATATYPES)}", field=f"{path}.datatype")
        shape = _shape(value.get("shape"), path)
        count = int(np.prod(shape))
        size = (value.get("parameters") or {}).get(SIZE) if isinstance(value.get("parameters"), dict | None) else None
        if size is None:
            values = _flat(value.get("data"), count, f"{path}.data")
        else:
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail) - at:
                raise RequestError(
                    f"{path} has no {size!r} bytes of data left behind the JSON", field=f"{path}.parameters"
                )
            values = _binary(datatype, tail[at : at + size], count, path)
            at += size
        out.append(Tensor(name, shape, values))
    if at != len(tail):
        raise RequestError(f"the body has {len(tail) - at} bytes that belong to no input", field="inputs")
    names = [tensor.name for tensor in out]
    if len(set(names)) < len(names):
        raise RequestError("inputs name a tensor twice", field="inputs")
    return out


def request_of(tensors: Sequence[Tensor], parameters: Any) -> dict[str, Any]:
    """The request that tensors by field make, in the form of one element of ``instances``.

    Raises:
        RequestError: their shapes do not fit each other.
    """
    parameters = parameters if isinstance(parameters, dict) else {}
    limits = {name: parameters[name] for name in ("k", "deadline_ms") if name in parameters}
    by_name = {tensor.name: tensor for tensor in tensors}
    if "candidates" in by_name:
        request: dict[str, Any] = {"candidates": by_name.pop("candidates").values, **limits}
        single = {name: _single(tensor) for name, tensor in by_name.items()}
        if "user_id" in single:
            request["user_id"] = single.pop("user_id")
        return request | {"context": single}
    rows = {tensor.shape[0] for tensor in tensors}
    if len(rows) != 1:
        raise RequestError(f"inputs must all have the same number of rows, not {sorted(rows)}", field="inputs")
    count = rows.pop()
    if not 1 <= count <= MAX_CANDIDATES:
        raise RequestError(f"inputs must hold 1 to {MAX_CANDIDATES} rows, not {count}", field="inputs")
    columns = {tensor.name: _column(tensor, count) for tensor in tensors}
    return {"rows": [{name: column[row] for name, column in columns.items()} for row in range(count)], **limits}


def wants_binary(body: dict[str, Any]) -> set[str] | None:
    """Names of the outputs that the caller wants as binary; None for all of them."""
    parameters = body.get("parameters")
    if isinstance(parameters, dict) and parameters.get(WANTED_ALL) is True:
        return None
    outputs = body.get("outputs")
    return {
        output["name"]
        for output in (outputs if isinstance(outputs, list) else [])
        if isinstance(output.get("parameters"), dict) and output["parameters"].get(WANTED) is True
    }


def pack(datatype: str, values: Sequence[Any]) -> bytes:
    """The binary data of a tensor."""
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.asarray(values, NUMBERS[datatype]).tobytes()


def _shape(value: Any, path: str) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= 2
        or not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= 1 << 20 for size in value)
    ):
        raise RequestError(f"{path}.shape must be one or two sizes", field=f"{path}.shape")
    return tuple(value)


def _flat(data: Any, count: int, path: str) -> list[Any]:
    if not isinstance(data, list):
        raise RequestError(f"{path} must be a list", field=path)
    if data and all(isinstance(part, list) for part in data):
        data = [value for part in data for value in part]
    if len(data) != count:
        raise RequestError(f"{path} must hold {count} values, as the shape says, not {len(data)}", field=path)
    return data


def _binary(datatype: str, raw: bytes, count: int, path: str) -> list[Any]:
    if datatype != "BYTES":
        kind = np.dtype(NUMBERS[datatype])
        if len(raw) != count * kind.itemsize:
            raise RequestError(f"{path} must have {count * kind.itemsize} bytes of data, not {len(raw)}", field=path)
        found: list[Any] = np.frombuffer(raw, kind).tolist()
        return found
    out, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw) or at + 4 + (size := struct.unpack_from("<I", raw, at)[0]) > len(raw):
            raise RequestError(f"{path} has BYTES data that end within an element", field=path)
        try:
            out.append(raw[at + 4 : at + 4 + size].decode())
        except UnicodeDecodeError:
            raise RequestError(f"{path} has an element that is no UTF-8 text", field=path) from None
        at += 4 + size
    if len(out) != count:
        raise RequestError(f"{path} must have {count} elements, as the shape says, not {len(out)}", field=path)
    return out


def _single(tensor: Tensor) -> Any:
    if tensor.shape != (1,):
        raise RequestError(
            f"input {tensor.name[:64]!r} must have the shape [1] beside candidates", field=tensor.name[:64]
        )
    return tensor.values[0]


def _column(tensor: Tensor, rows: int) -> list[Any]:
    if len(tensor.shape) == 1:
        return tensor.values
    width = tensor.shape[1]
    found = [tensor.values[row * width : (row + 1) * width] for row in range(rows)]
    if all(isinstance(value, str) for value in tensor.values):  # a sequence; it ends where the padding begins
        return [row[: row.index("")] if "" in row else row for row in found]
    return found
