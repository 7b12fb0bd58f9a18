"""Tensors of the Open Inference protocol on the wire: as JSON, or as binary behind the JSON.

In a binary body the header ``Inference-Header-Content-Length`` says where its JSON ends; the data of the tensors with
``binary_data_size`` follow it in their order. Numbers are little endian; elements of BYTES are four bytes of length and that
many bytes of UTF-8. Answers are binary for the outputs that ask so with ``binary_data``, or for all with ``binary_data_output``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from thinktwice.errors import RequestError
from thinktwice.schema.limits import FLOAT32_LIMIT

HEADER = "inference-header-content-length"
SIZE, WANTED, WANTED_ALL = "binary_data_size", "binary_data", "binary_data_output"
NUMBERS = {
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BOOL": "?",
}
DATATYPES = (*NUMBERS, "BYTES")
NARROW = {"FP16": np.float16, "FP32": np.float32}
#: Smallest and largest value. A float beyond rounds to infinity; the limits lie half a step above the largest finite one.
RANGES: dict[str, tuple[float, float]] = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    "FP16": (-65519.99999999999, 65519.99999999999),
    "FP32": (-math.nextafter(FLOAT32_LIMIT, 0), math.nextafter(FLOAT32_LIMIT, 0)),
}
MAX_TENSORS = 64  # tensors of a body
MAX_DIM_SIZE = 1 << 20  # of one size of a shape
MAX_LENGTH_DIGITS = 10  # of the length in the header


@dataclass(frozen=True)
class Tensor:
    """One input. ``values`` stand in row order, as many as the shape says; null is None. ``path`` is its place in the body.

    Values of FP32 and FP16 are numpy scalars of that type, except in vectors: their text is not that of the float64 next to them.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any]
    path: str


def split(raw: bytes, length: str | None) -> tuple[bytes, bytes]:
    """The JSON of a body and what follows it; ``length`` is the value of the header, None without one.

    Raises:
        RequestError: the header is no length within the body.
    """
    if length is None:
        return raw, b""
    if not (length.isascii() and length.isdigit() and len(length) <= MAX_LENGTH_DIGITS and int(length) <= len(raw)):
        raise RequestError(
            f"header {HEADER} must be a number of bytes up to {len(raw)}, the size of the body", field=HEADER
        )
    return raw[: int(length)], raw[int(length) :]


def read(inputs: Any, tail: bytes, *, vectors: Collection[str] = (), widens: bool = False) -> list[Tensor]:
    """The tensors of a body; ``tail`` holds the data of the binary ones.

    Args:
        vectors: names of those that hold vectors, whose entries become float32 anyway.
        widens: give all floats as float64.

    Raises:
        RequestError: naming the first input that is wrong.
    """
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= MAX_TENSORS:
        raise RequestError(f"inputs must be a list of 1 to {MAX_TENSORS} tensors", field="inputs")
    out: list[Tensor] = []
    at = 0
    for number, value in enumerate(inputs):
        tensor, used = _read_one(value, f"inputs[{number}]", tail[at:])
        if not widens and tensor.datatype in NARROW and tensor.name not in vectors:
            kind = NARROW[tensor.datatype]
            tensor = replace(tensor, values=[None if v is None else kind(v) for v in tensor.values])
        if any(tensor.name == other.name for other in out):
            raise RequestError(f"{tensor.path}.name {tensor.name[:64]!r} is there twice", field=f"{tensor.path}.name")
        out.append(tensor)
        at += used
    if at != len(tail):
        raise RequestError(f"the body has {len(tail) - at} bytes that belong to no input", field="inputs")
    return out


def _read_one(value: Any, path: str, tail: bytes) -> tuple[Tensor, int]:
    if not isinstance(value, dict):
        raise RequestError(f"{path} must be an object", field=path)
    refuse_unknown(value, ("name", "datatype", "shape", "data", "parameters"), path, f"{path}.")
    name, datatype = value.get("name"), value.get("datatype")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{path}.name must be a name", field=f"{path}.name")
    if datatype not in DATATYPES:
        raise RequestError(f"{path}.datatype must be one of {', '.join(DATATYPES)}", field=f"{path}.datatype")
    shape = _shape(value.get("shape"), f"{path}.shape")
    size = parameters(value, f"{path}.", known=(SIZE,)).get(SIZE)
    if size is None:
        return Tensor(name, datatype, shape, _from_json(value.get("data"), datatype, shape, f"{path}.data"), path), 0
    if value.get("data") is not None:
        raise RequestError(f"{path}.data must be absent where {SIZE} is given", field=f"{path}.data")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail):
        raise RequestError(
            f"{path}.parameters.{SIZE} must be a number of bytes up to {len(tail)}, which are left behind the JSON",
            field=f"{path}.parameters.{SIZE}",
        )
    return Tensor(name, datatype, shape, _from_binary(tail[:size], datatype, math.prod(shape), path), path), size


def parameters(value: dict[str, Any], path: str = "", *, known: Collection[str] | None) -> dict[str, Any]:
    """The ``parameters`` of a body or a tensor, empty when there are none; ``known``: those there may be, None for any.

    Raises:
        RequestError: they are no object, or an unknown one is among them.
    """
    found = value.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RequestError(f"{path}parameters must be an object", field=f"{path}parameters")
    if known is not None:
        refuse_unknown(found, known, f"{path}parameters", f"{path}parameters.")
    return found


def refuse_unknown(value: dict[str, Any], known: Collection[str], where: str, path: str = "") -> None:
    """Refuse an object with other keys than ``known``.

    Raises:
        RequestError: naming the first of them.
    """
    for name in value:
        if name not in known:
            raise RequestError(
                f"unknown key {name[:64]!r} in {where}: known are {', '.join(known)}", field=f"{path}{name[:64]}"
            )


def wants_binary(
    value: dict[str, Any], name: str, default: bool, path: str = "", *, known: Collection[str] | None = (WANTED,)
) -> bool:
    """Whether the parameter ``name`` of a body or an output asks for binary data; ``known`` as in :func:`parameters`.

    Raises:
        RequestError: it is not a boolean.
    """
    found = parameters(value, path, known=known).get(name)
    if found is None:
        return default
    if not isinstance(found, bool):
        raise RequestError(f"{path}parameters.{name} must be true or false", field=f"{path}parameters.{name}")
    return found


def pack(datatype: str, values: Sequence[Any]) -> bytes:
    """The binary data of a tensor."""
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values]
        return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
    return np.asarray(values, NUMBERS[datatype]).tobytes()


def _shape(value: Any, path: str) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= 2
        or not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= MAX_DIM_SIZE for size in value)
    ):
        raise RequestError(f"{path} must be one or two sizes of 1 to {MAX_DIM_SIZE}", field=path)
    return tuple(value)


def _from_json(data: Any, datatype: str, shape: tuple[int, ...], path: str) -> list[Any]:
    if not isinstance(data, list):
        raise RequestError(f"{path} must be a list", field=path)
    if len(shape) == 2 and data and isinstance(data[0], list):
        for number, row in enumerate(data):
            if not isinstance(row, list) or len(row) != shape[1]:
                raise RequestError(
                    f"{path}[{number}] must be a list of {shape[1]} values, as the shape says",
                    field=f"{path}[{number}]",
                )
        data = [value for row in data for value in row]
    if len(data) != (count := math.prod(shape)):
        raise RequestError(f"{path} must hold {count} values, as the shape says, not {len(data)}", field=path)
    fits, kind = _CHECKS[datatype[:2]]
    for number, value in enumerate(data):
        if type(value) not in fits and value is not None:
            raise RequestError(f"{path}[{number}] must be {kind}, as {datatype} says", field=f"{path}[{number}]")
    if datatype in RANGES:
        low, high = RANGES[datatype]
        for number, value in enumerate(data):
            if value is not None and not low <= value <= high:
                raise RequestError(f"{path}[{number}] {value} is not {datatype}", field=f"{path}[{number}]")
    return [None if value is None else float(value) for value in data] if datatype.startswith("FP") else data


_CHECKS: dict[str, tuple[tuple[type, ...], str]] = {
    "BY": ((str,), "a string"),
    "BO": ((bool,), "true or false"),
    "FP": ((int, float), "a number"),
    "IN": ((int,), "an integer"),
    "UI": ((int,), "an integer"),
}


def _from_binary(raw: bytes, datatype: str, count: int, path: str) -> list[Any]:
    if datatype != "BYTES":
        kind = np.dtype(NUMBERS[datatype])
        if len(raw) != count * kind.itemsize:
            raise RequestError(
                f"{path} must have {count * kind.itemsize} bytes of data, as its shape says, not {len(raw)}", field=path
            )
        if datatype == "BOOL" and (wrong := np.flatnonzero(np.frombuffer(raw, np.uint8) > 1)).size:
            raise RequestError(
                f"{path} has an element {wrong[0]} that is not BOOL: its byte must be 0 or 1", field=path
            )
        found: list[Any] = np.frombuffer(raw, kind).tolist()
        return found
    out: list[str] = []
    at = 0
    while at < len(raw):
        size = struct.unpack_from("<I", raw, at)[0] if at + 4 <= len(raw) else len(raw)
        if at + 4 + size > len(raw):
            raise RequestError(f"{path} has data that end within element {len(out)}", field=path)
        try:
            out.append(raw[at + 4 : at + 4 + size].decode())
        except UnicodeDecodeError:
            raise RequestError(f"{path} has an element {len(out)} that is not UTF-8 text", field=path) from None
        at += 4 + size
    if len(out) != count:
        raise RequestError(f"{path} must have {count} elements of data, as its shape says, not {len(out)}", field=path)
    return out
