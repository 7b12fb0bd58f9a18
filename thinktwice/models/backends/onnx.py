"""The trunk in ONNX Runtime: exported once when the model is packaged, run with one thread.

The file contains the trunk, from field vectors [rows, N, D] to hidden states [rows, H]. Lookups stay in torch, so that one file
works with any gate. So do the head and the sum of first-order weights: ONNX Runtime adds both in an order that depends on the
row's position in the batch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thinktwice.errors import BundleError, reason
from thinktwice.files import atomic_file
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Embedded, MakeBackend

ONNX_FILE = "backend.onnx"


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


class Onnx(Embedded):
    """ONNX Runtime in float32.

    Args:
        session: an ``onnxruntime.InferenceSession`` of an exported trunk.
    """

    name = "onnx"

    def __init__(self, model: Backbone, table: Tensor | None, fill: Tensor, session: Any) -> None:
        super().__init__(model, table, fill)
        self._session = session

    def dense(self, x: Tensor) -> Tensor:
        try:
            (hidden,) = self._session.run(None, {"x": x.contiguous().numpy()})
        except Exception as error:  # its own exception classes share no base
            raise BundleError(f"{ONNX_FILE} cannot be computed ({reason(error)}): package the model again") from error
        out = torch.from_numpy(hidden)
        out[:, -1] = x[..., -1].sum(dim=1)  # every trunk ends with this sum
        return self.model.head(out)


class _Trunk(nn.Module):
    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.trunk(x)


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
            _Trunk(model).eval(),
            (example,),
            input_names=["x"],
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
