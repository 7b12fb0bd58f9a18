"""The trunk in ONNX Runtime: exported once when the model is packaged, run with one thread.

The file holds the trunk, from field vectors [rows, N, D] to hidden states [rows, H]. Look-ups stay with torch, so that one file
serves any gate. So do the head and the sum of first-order weights: ONNX Runtime adds both in an order that depends on the
row's place in the batch.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thinktwice.errors import BundleError, reason
from thinktwice.files import atomic_file
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Embedded, MakeBackend

ONNX_FILE = "backend.onnx"


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
        (hidden,) = self._session.run(None, {"x": x.contiguous().numpy()})
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
    # It tells every user about operators of a library that no model here uses.
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
    """What :func:`export` wrote, as a backend to make.

    Raises:
        ImportError: ONNX Runtime is not installed.
        BundleError: the file is damaged.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = Path(folder) / ONNX_FILE
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exception classes share no base
        raise BundleError(f"{path} cannot be read ({reason(error)}): package the model again") from error
    return lambda model, table, fill: Onnx(model, table, fill, session)
