"""Tensors of the Open Inference protocol on the wire: as JSON, or as binary data after the JSON.

In a binary body the header ``Inference-Header-Content-Length`` gives the length of the JSON; the data of the tensors with
``binary_data_size`` follow in order. Numbers are little endian; an element of BYTES is a four-byte length and that many bytes of
UTF-8. Outputs are binary if requested by ``binary_data``, or for all outputs by ``binary_data_output``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, SkipValidation

from serving.protocol.faults import Fault, kind_of, shortened, shown
from serving.protocol.requests import Strict
from thinktwice.errors import RequestError
from thinktwice.schema.limits import FLOAT32_LIMIT

HEADER = "inference-header-content-length"
SIZE = "binary_data_size"
NUMBERS = {
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BOOL": "?",
}
DATATYPES = (*NUMBERS, "BYTES")
NARROW = {"FP16": np.float16, "FP32": np.float32}
#: Smallest and largest value. A float beyond them rounds to infinity; the limits are half a step above the largest finite one.
RANGES: dict[str, tuple[float, float]] = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    "FP16": (-65519.99999999999, 65519.99999999999),
    "FP32": (-math.nextafter(FLOAT32_LIMIT, 0), math.nextafter(FLOAT32_LIMIT, 0)),
}
MAX_TENSORS = 64  # of a body
MAX_SIZE = 1 << 20  # of one dimension
MAX_DIGITS = 10  # of the length in the header
#: Either the data are in the JSON, or their size is set and they follow the JSON.
HERE_OR_BEHIND: dict[str, Any] = {
    "anyOf": [
        {
            "properties": {
                "data": {"type": "array"},
                "parameters": {"anyOf": [{"properties": {SIZE: {"type": "null"}}}, {"type": "null"}]},
            },
            "required": ["data"],
        },
        {
            "properties": {
                "data": {"type": "null"},
                "parameters": {"type": "object", "properties": {SIZE: {"type": "integer"}}, "required": [SIZE]},
            },
            "required": ["parameters"],
        },
    ]
}

Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Sizes = Annotated[list[Size], Field(min_length=1, max_length=2)]
Name = Annotated[str, Field(min_length=1)]


class TensorParameters(Strict):
    """Parameters of an input."""

    binary_data_size: int | None = Field(default=None, ge=0)


class InputTensor(Strict):
    """One input, of which ``data`` is checked against shape and datatype by :func:`read`."""

    model_config = ConfigDict(json_schema_extra=HERE_OR_BEHIND)

    name: Name
    datatype: Literal[DATATYPES]  # type: ignore[valid-type]
    shape: Sizes
    data: Annotated[list[Any], SkipValidation] | None = Field(
        default=None, description="In row order, flat or nested as the shape says."
    )
    parameters: TensorParameters | None = None


@dataclass(frozen=True)
class Tensor:
    """One parsed input.

    Attributes:
        values: in row order, one per element of the shape; None for null.
        index: position among the inputs.

    Values of FP32 and FP16 are numpy scalars of that type, except in vectors: as text they differ from the nearest float64.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any]
    index: int

    def fault(self, reason: str, *loc: str | int, kind: str = "tensor", value: Any = None) -> Fault:
        """A fault of this input or of a part of it."""
        return Fault(("inputs", self.index, *loc), reason, value, kind=kind, name=self.name)


def split(raw: bytes, length: str | None) -> tuple[bytes, bytes]:
    """Split a body into its JSON and the data after it; ``length`` is the value of the header, None without one.

    Raises:
        RequestError: the header is not a valid length of at most the size of the body.
    """
    if length is None:
        return raw, b""
    if not (length.isascii() and length.isdigit() and len(length) <= MAX_DIGITS and int(length) <= len(raw)):
        raise RequestError(
            f"header {HEADER} must be a number of bytes up to {len(raw)}, the size of the body, not {shown(length)}",
            field=HEADER,
        )
    return raw[: int(length)], raw[int(length) :]


def read(inputs: Sequence[Any], tail: bytes, *, vectors: Collection[str] = (), widens: bool = False) -> list[Tensor]:
    """The tensors of a body.

    Args:
        inputs: validated, like :class:`InputTensor`.
        tail: the data of the binary tensors.
        vectors: names of the vector fields, whose entries become float32 anyway.
        widens: return all floats as float64.

    Raises:
        Fault: the first invalid input.
    """
    out: list[Tensor] = []
    names: set[str] = set()
    at = 0
    for index, value in enumerate(inputs):
        size = None if value.parameters is None else value.parameters.binary_data_size
        tensor = Tensor(value.name, value.datatype, tuple(value.shape), [], index)
        if value.name in names:
            raise tensor.fault(f"is {shown(value.name)}, which is twice among the inputs", "name", kind="repeated_name")
        names.add(value.name)
        if size is None:
            values = _from_json(value.data, tensor)
        else:
            values = _from_binary(_part(value, size, tail[at:], tensor), tensor)
            at += size
        if not widens and tensor.datatype in NARROW and tensor.name not in vectors:
            narrow = NARROW[tensor.datatype]
            values = [None if v is None else narrow(v) for v in values]
        tensor.values.extend(values)
        out.append(tensor)
    if at != len(tail):
        raise Fault(("inputs",), f"leave {len(tail) - at} bytes after the JSON that belong to no tensor", kind="binary")
    return out


def pack(datatype: str, values: Sequence[Any]) -> bytes:
    """The binary data of a tensor."""
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values]
        return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
    return np.asarray(values, NUMBERS[datatype]).tobytes()


def _from_json(data: Any, tensor: Tensor) -> list[Any]:
    if not isinstance(data, list):
        problem = "is missing" if data is None else f"must be a list, not {kind_of(data)}"
        raise tensor.fault(problem, "data", kind="list_type")
    shape, datatype = tensor.shape, tensor.datatype
    if len(shape) == 2 and data and isinstance(data[0], list):
        for row, values in enumerate(data):
            if not isinstance(values, list) or len(values) != shape[1]:
                raise tensor.fault(f"must be a list of {shape[1]} values, as the shape says", "data", row, kind="shape")
        data = [value for values in data for value in values]
    if len(data) != (count := math.prod(shape)):
        raise tensor.fault(f"has {len(data)} values and not {count}, as the shape says", "data", kind="shape")
    fits, kind = _CHECKS[datatype[:2]]
    for position, value in enumerate(data):
        if type(value) not in fits and value is not None:
            raise tensor.fault(f"must be {kind}, as {datatype} says", "data", position, kind="datatype", value=value)
    if datatype in RANGES:
        low, high = RANGES[datatype]
        for position, value in enumerate(data):
            if value is not None and not low <= value <= high:
                reason = f"is {shortened(str(value))}, which is outside {datatype}"
                raise tensor.fault(reason, "data", position, kind="datatype", value=value)
    return [None if value is None else float(value) for value in data] if datatype.startswith("FP") else data


_CHECKS: dict[str, tuple[tuple[type, ...], str]] = {
    "BY": ((str,), "a string"),
    "BO": ((bool,), "true or false"),
    "FP": ((int, float), "a number"),
    "IN": ((int,), "an integer"),
    "UI": ((int,), "an integer"),
}


def _part(value: Any, size: int, tail: bytes, tensor: Tensor) -> bytes:
    """The bytes of a binary input, which are at the start of ``tail``."""
    if value.data is not None:
        raise tensor.fault(f"must be absent where {SIZE} is given", "data", kind="binary")
    if size > len(tail):
        reason = f"must be at most {len(tail)}, the bytes that remain after the JSON, not {size}"
        raise tensor.fault(reason, "parameters", SIZE, kind="binary")
    return tail[:size]


def _from_binary(raw: bytes, tensor: Tensor) -> list[Any]:
    datatype, count = tensor.datatype, math.prod(tensor.shape)
    if datatype != "BYTES":
        kind = np.dtype(NUMBERS[datatype])
        if len(raw) != count * kind.itemsize:
            reason = f"has {len(raw)} bytes of data and not {count * kind.itemsize}, as its shape says"
            raise tensor.fault(reason, kind="binary")
        if datatype == "BOOL" and (wrong := np.flatnonzero(np.frombuffer(raw, np.uint8) > 1)).size:
            raise tensor.fault(f"has an element {wrong[0]} that is not BOOL: its byte must be 0 or 1", kind="binary")
        numbers: list[Any] = np.frombuffer(raw, kind).tolist()
        return numbers
    out: list[str] = []
    at = 0
    while at < len(raw):
        size = struct.unpack_from("<I", raw, at)[0] if at + 4 <= len(raw) else len(raw)
        if at + 4 + size > len(raw):
            raise tensor.fault(f"has a truncated element {len(out)}", kind="binary")
        try:
            out.append(raw[at + 4 : at + 4 + size].decode())
        except UnicodeDecodeError:
            raise tensor.fault(f"has an element {len(out)} that is not UTF-8 text", kind="binary") from None
        at += 4 + size
    if len(out) != count:
        raise tensor.fault(f"has {len(out)} elements of data and not {count}, as its shape says", kind="binary")
    return out
