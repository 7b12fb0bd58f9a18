"""One request in tensors by field instead of JSON text.

Two forms, told apart by whether there is a tensor ``candidates``:

* candidates: ``candidates`` [n] and ``user_id`` [1] (BYTES or whole numbers), context fields and ``timestamp`` [1] each;
* raw rows: one tensor [n] per field that is given, vectors [n, dim], sequences BYTES [n, length] whose rows end with empty texts.

``k`` and ``deadline_ms`` stand in the parameters of the body. A missing value is null, NaN in the numbers of a binary tensor (a
vector of NaN is a missing vector), and the empty text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.protocol.requests import MAX_CANDIDATES, Request, RequestParser
from serving.protocol.v2_tensors import Tensor
from thinktwice.errors import RequestError

LIMITS = ("k", "deadline_ms")  # parameters of the body
ROOT = "tensors"  # where the parser believes to be
PLACE = re.compile(rf"{ROOT}(?:\[0\])?(?:\.rows(?:\[(\d+)\])?|\.context)?(?:\.(.+?))?((?:\[\d+\])?)")


def parse(tensors: Sequence[Tensor], parameters: dict[str, Any], parser: RequestParser) -> Request:
    """The request that tensors make.

    Args:
        tensors: with different names.
        parameters: of the body.
        parser: of the model.

    Raises:
        RequestError: naming the input, or the place in its data, that is wrong.
    """
    limits = {name: parameters[name] for name in LIMITS if name in parameters}
    by_name = {tensor.name: tensor for tensor in tensors}
    value = (_candidates(by_name) if "candidates" in by_name else _rows(tensors)) | limits
    try:
        (request,) = parser.parse_all([value], ROOT)
    except RequestError as error:
        where, rest = re.fullmatch(r"([^\s:]+)(.*)", str(error), re.DOTALL).groups()  # type: ignore[union-attr]
        raise RequestError(
            place(where, by_name) + rest, field=place(error.field, by_name), status=error.status
        ) from None
    return request


def place(where: str, tensors: dict[str, Tensor]) -> str:
    """The place in the body that a path of the parser means."""
    found = PLACE.fullmatch(where)
    if found is None or found[2] is None:
        return "inputs"
    row, name, index = found.groups()
    tensor = tensors.get(name)
    if tensor is None:
        return f"parameters.{name}" if name in LIMITS else f"inputs.{name}"
    if row is not None:
        return f"{tensor.path}.data[{row}]{index}"
    return f"{tensor.path}.data{index or '[0]'}" if name != "candidates" or index else tensor.path


def _candidates(tensors: dict[str, Tensor]) -> dict[str, Any]:
    candidates = tensors["candidates"]
    if len(candidates.shape) != 1:
        raise RequestError(f"{candidates.path}.shape must be one size", field=f"{candidates.path}.shape")
    single = {}
    for name, tensor in tensors.items():
        if tensor is candidates:
            continue
        if tensor.shape != (1,):
            raise RequestError(f"{tensor.path}.shape must be [1] beside candidates", field=f"{tensor.path}.shape")
        single[name] = None if _nan(tensor.values[0]) else tensor.values[0]
    user = {"user_id": single.pop("user_id")} if "user_id" in single else {}
    return {"candidates": candidates.values, "context": single, **user}


def _rows(tensors: Sequence[Tensor]) -> dict[str, Any]:
    count = tensors[0].shape[0]
    for tensor in tensors:
        if tensor.shape[0] != count:
            raise RequestError(
                f"{tensor.path}.shape must begin with {count}, the rows of {tensors[0].path}",
                field=f"{tensor.path}.shape",
            )
    if count > MAX_CANDIDATES:
        raise RequestError(f"inputs must hold 1 to {MAX_CANDIDATES} rows, not {count}", field="inputs")
    columns = {tensor.name: _column(tensor, count) for tensor in tensors}
    return {"rows": [{name: column[row] for name, column in columns.items()} for row in range(count)]}


def _column(tensor: Tensor, rows: int) -> list[Any]:
    if len(tensor.shape) == 1:
        return [None if _nan(value) else value for value in tensor.values]
    width = tensor.shape[1]
    found = [tensor.values[row * width : (row + 1) * width] for row in range(rows)]
    if tensor.datatype == "BYTES":  # a sequence; it ends where the padding begins
        return [row[: row.index("")] if "" in row else row for row in found]
    return [None if all(map(_nan, row)) else row for row in found]


def _nan(value: Any) -> bool:
    return isinstance(value, (float, np.floating)) and math.isnan(value)
