"""Trunk and head in ONNX Runtime: exported once when the model is packaged, run with one thread.

The file maps field vectors [rows, N, D] to logits [rows]. Lookups stay outside, so that one file works with any gate. What
ONNX Runtime would add in an order that depends on the row's position in the batch is exported as a wider product.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from thinktwice.errors import BundleError, reason
from thinktwice.files import atomic_file
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import MakeBackend
from thinktwice.models.backends.lookup import Prepared

ONNX_FILE = "backend.onnx"
COLUMNS = 16  # of a product that every row adds in the same order

#: Operators that trunks use. No control flow, which may not terminate, and no operators of other libraries.
OPERATORS = frozenset(
    [
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "Div",
        "Flatten",
        "Gather",
        "Gemm",
        "Identity",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    ]
)


class Onnx(Prepared):
    """ONNX Runtime in float32.

    Args:
        session: an ``onnxruntime.InferenceSession`` of an exported trunk.
    """

    name = "onnx"

    def __init__(self, model: Backbone, table: Tensor | None, fill: Tensor, session: Any) -> None:
        super().__init__(model, table, fill)
        self._session = session
        self._whole = session.get_outputs()[0].name == "logit"  # else a file of an older version, without the head

    def dense(self, x: Tensor) -> Tensor:
        try:
            (found,) = self._session.run(None, {"x": x.contiguous().numpy()})
        except Exception as error:  # its own exception classes share no base
            raise BundleError(f"{ONNX_FILE} cannot be computed ({reason(error)}): package the model again") from error
        out = torch.from_numpy(found)
        if self._whole:
            return out
        out[:, -1] = x[..., -1].sum(dim=1)  # every trunk ends with this sum
        return self.model.head(out)


class _Whole(nn.Module):
    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with _Products():
            return self.model.score(x)[:, 0]


class _Products(TorchFunctionMode):
    """Replaces what ONNX Runtime adds in an order that depends on the row's position, by products with enough columns for the
    kernel of large products: sums over the last axis and layers with one output."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (Tensor.sum, torch.sum):
            return _sum(*args, **(kwargs or {}))
        if function is F.linear:
            return _linear(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _sum(x: Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False, **dtype: Any) -> Tensor:
    if dim is None or dtype:
        return x.sum(dim, keepdim, **dtype)
    dims = sorted(d % x.dim() for d in ((dim,) if isinstance(dim, int) else dim))
    if x.dim() - 1 not in dims:
        return x.sum(dims, keepdim)
    rest = [d for d in range(x.dim()) if d not in dims]
    last = x.permute(*rest, *dims).flatten(len(rest))
    total = (last @ torch.ones(last.shape[-1], COLUMNS))[..., 0]
    for d in dims if keepdim else ():
        total = total.unsqueeze(d)
    return total


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if len(weight) > 1:  # of a matrix: the runtime adds a bias within such a product only
        return (
            F.linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
            if x.dim() > 2
            else F.linear(x, weight, bias)
        )
    wide = F.linear(x, torch.cat([weight] * COLUMNS))[..., :1]
    return wide if bias is None else wide + bias


def export(model: Backbone, folder: Path | str) -> None:
    """Write ``backend.onnx`` into ``folder``.

    Raises:
        ImportError: the exporter is not installed.
    """
    import onnx

    example = torch.zeros(8, model.num_fields, model.dim + 1)
    # It warns every user about operators of a library that no model here uses.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Whole(model).eval(),
            (example,),
            input_names=["x"],
            output_names=["logit"],
            dynamic_shapes={"x": {0: torch.export.Dim("rows", min=1)}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:  # traces of the exporting machine
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    del proto.graph.metadata_props[:], proto.metadata_props[:]
    onnx.checker.check_model(proto)
    with atomic_file(Path(folder) / ONNX_FILE) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def load(folder: Path | str) -> MakeBackend:
    """A factory of the backend that :func:`export` wrote.

    Raises:
        ImportError: ONNX Runtime is not installed.
        BundleError: the file is damaged.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = Path(folder) / ONNX_FILE
    try:
        data = path.read_bytes()
        _check_operators(data)
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=False)
    except Exception as error:  # its own exception classes share no base
        raise BundleError(f"{path} cannot be read ({reason(error)}): package the model again") from error
    return lambda model, table, fill: Onnx(model, table, fill, session)


def _check_operators(data: bytes) -> None:
    """Refuse a model with any operator outside :data:`OPERATORS`, before the runtime reads it."""
    for number, part in _parts(data):
        if number in (20, 25):  # ModelProto: training_info, functions
            raise ValueError("it contains more than a graph")
        if number != 7:  # graph
            continue
        for inner, node in _parts(part):
            if inner != 1:  # GraphProto: node
                continue
            fields = list(_parts(node))
            names = [bytes(value).decode("utf-8") for field, value in fields if field == 4]  # NodeProto: op_type
            if len(names) != 1 or names[0] not in OPERATORS or any(value for field, value in fields if field == 7):
                raise ValueError(f"it contains the operator {names[0] if names else ''!r}")  # 7: domain


def _parts(data: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of the length-delimited fields of a protobuf message; the others are skipped."""
    view, at = memoryview(data), 0
    while at < len(view):
        key, at = _varint(view, at)
        match key & 7:
            case 0:
                _, at = _varint(view, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                length, at = _varint(view, at)
                if length > len(view) - at:
                    raise ValueError("it is cut")
                yield key >> 3, view[at : at + length]
                at += length
            case _:
                raise ValueError("it is not a protobuf message")
    if at > len(view):
        raise ValueError("it is cut")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise ValueError("it is cut")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("it is not a protobuf message")
