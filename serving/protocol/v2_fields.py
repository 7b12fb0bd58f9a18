"""Requests sent as one tensor per field instead of JSON text.

There are two forms; the first has a tensor ``candidates``:

* candidates: ``candidates`` [n] and ``user_id`` [1] (BYTES or integers), context fields and ``timestamp`` [1] each, and fields
  of kind list and their weights [1, length];
* raw rows: one tensor [n] per field, vectors [n, dim], sequences BYTES [n, length] whose rows end with empty texts, weights of lists
  [n, length] whose rows end with missing values.

``k`` and ``deadline_ms`` are parameters of the body. A missing value is null, NaN in the numbers of a binary tensor (a
vector of NaN is a missing vector), and the empty text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from serving.protocol.faults import Fault
from serving.protocol.requests import MAX_CANDIDATES, Request, RequestParser
from serving.protocol.v2_tensors import Tensor
from thinktwice.errors import Location

LIMITS = ("k", "deadline_ms")  # parameters of the body


def parse(tensors: Sequence[Tensor], limits: Mapping[str, Any], parser: RequestParser) -> Request:
    """Parse the request in a body's tensors.

    Args:
        tensors: with distinct names.
        limits: ``k`` and ``deadline_ms``.
        parser: of the model.

    Raises:
        Fault: the invalid input, or the invalid position in its data.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    if "candidates" in by_name:
        value = _candidates(by_name, parser.context_lists, parser.weights)
    else:
        value = _rows(tensors, parser.weights)
    value |= dict(limits)
    try:
        (request,) = parser.read([value])
    except Fault as fault:
        raise moved(fault, by_name) from None
    return request


def moved(fault: Fault, tensors: Mapping[str, Tensor]) -> Fault:
    """A fault of the request, relocated to the tensor that its value came from."""
    match fault.loc[1:]:
        case ("rows", int(row), str(name), *rest):
            return _at(fault, tensors, name, row, *rest)
        case ("candidates", *rest):
            return _at(fault, tensors, "candidates", *rest)
        case ("context", str(name)) | (str(name),) if name not in ("rows", "context"):
            return (
                fault.at(("parameters", name))
                if name in LIMITS and name not in tensors
                else _at(fault, tensors, name, 0)
            )
        case _:
            return fault.at(("inputs",))


def _at(fault: Fault, tensors: Mapping[str, Tensor], name: str, *data: str | int) -> Fault:
    if name not in tensors:
        return fault.at(("inputs", name))
    loc: Location = ("inputs", tensors[name].index, *(("data", *data) if data else ()))
    return fault.at(loc, name)


def _candidates(tensors: dict[str, Tensor], lists: Collection[str], weights: Collection[str]) -> dict[str, Any]:
    candidates = tensors["candidates"]
    if len(candidates.shape) != 1:
        raise candidates.fault("must be one size", "shape", kind="shape")
    single = {}
    for name, tensor in tensors.items():
        if tensor is candidates:
            continue
        if name in lists and len(tensor.shape) == 2 and tensor.shape[0] == 1:
            single[name] = _column(tensor, 1, weights)[0]
            continue
        if tensor.shape != (1,):
            raise tensor.fault("must be [1] beside candidates", "shape", kind="shape")
        single[name] = None if _nan(tensor.values[0]) else tensor.values[0]
    user = {"user_id": single.pop("user_id")} if "user_id" in single else {}
    return {"candidates": candidates.values, "context": single, **user}


def _rows(tensors: Sequence[Tensor], weights: Collection[str]) -> dict[str, Any]:
    count = tensors[0].shape[0]
    for tensor in tensors:
        if tensor.shape[0] != count:
            raise tensor.fault(f"must begin with {count}, the rows of inputs[0]", "shape", kind="shape")
    if count > MAX_CANDIDATES:
        raise Fault(("inputs",), f"have {count} rows, at most {MAX_CANDIDATES} are accepted", kind="shape")
    columns = {tensor.name: _column(tensor, count, weights) for tensor in tensors}
    return {"rows": [{name: column[row] for name, column in columns.items()} for row in range(count)]}


def _column(tensor: Tensor, rows: int, weights: Collection[str]) -> list[Any]:
    if len(tensor.shape) == 1:
        return [None if _nan(value) else value for value in tensor.values]
    width = tensor.shape[1]
    matrix = [tensor.values[row * width : (row + 1) * width] for row in range(rows)]
    if tensor.datatype == "BYTES":  # a sequence; it ends where the padding begins
        return [row[: row.index("")] if "" in row else row for row in matrix]
    if tensor.name in weights:
        return [
            row[: next((i for i, value in enumerate(row) if value is None or _nan(value)), width)] for row in matrix
        ]
    return [None if all(map(_nan, row)) else row for row in matrix]


def _nan(value: Any) -> bool:
    return isinstance(value, (float, np.floating)) and math.isnan(value)
