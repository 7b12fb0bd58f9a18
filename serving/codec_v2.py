"""Open Inference v2: one BYTES tensor ``request`` of shape [n] in, each element one request as JSON text, or one request in a tensor
per field (:mod:`serving.v2_tensors`). Tensors are JSON or binary.

The answers of all n requests stand one after the other in flat output tensors; ``request_index`` says whose each is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from serving.scorer import Answer
from serving.v2_tensors import SIZE, pack, read, request_of, wants_binary
from thinktwice.errors import RequestError

INPUT = "request"
OUTPUTS = {
    "request_index": "INT64",
    "item_id": "BYTES",
    "probability": "FP64",
    "uncertainty": "FP64",
    "num_paths": "INT64",
    "rank": "INT64",
    "model_version": "BYTES",
}


def is_v2(body: dict[str, Any]) -> bool:
    """Whether a body means the Open Inference protocol. The path does not reach a TorchServe handler; the body decides."""
    return "inputs" in body and "instances" not in body


def instances(body: dict[str, Any], tail: bytes = b"") -> list[Any]:
    """The raw requests of a v2 body; ``tail`` is what follows its JSON.

    Raises:
        RequestError: it is neither the tensor ``request`` with one JSON object per element, nor tensors by field.
    """
    for name in body:
        if name not in {"id", "parameters", "inputs", "outputs"}:
            raise RequestError(f"unknown key {name[:64]!r} in the body", field=name[:64])
    if not isinstance(body.get("id", ""), str):
        raise RequestError("id must be a string", field="id")
    inputs = body["inputs"]
    if not isinstance(inputs, list) or not inputs or not isinstance(inputs[0], dict):
        raise RequestError(f"inputs must hold the tensor {INPUT!r}, or one tensor per field", field="inputs")
    names = [tensor.get("name") for tensor in inputs if isinstance(tensor, dict)]
    if INPUT not in names:
        return [request_of(read(inputs, tail), body.get("parameters"))]
    if len(inputs) != 1:
        raise RequestError(f"inputs must hold {INPUT!r} alone, or one tensor per field", field="inputs")
    if inputs[0].get("datatype") != "BYTES":
        raise RequestError("inputs[0].datatype must be BYTES", field="inputs[0].datatype")
    (tensor,) = read(inputs, tail)
    if len(tensor.shape) != 1:
        raise RequestError("inputs[0].shape must be one size", field="inputs[0].shape")
    return [_decode(element, f"inputs[0].data[{i}]") for i, element in enumerate(tensor.values)]


def _decode(element: Any, path: str) -> Any:
    if not isinstance(element, str):
        raise RequestError(f"{path} must be a string that holds one JSON object", field=path)
    try:
        return orjson.loads(element)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"{path} is not valid JSON: {error}", field=path) from None


def wanted_outputs(body: dict[str, Any]) -> list[str]:
    """Names of the output tensors the caller asked for, all by default.

    Raises:
        RequestError: ``outputs`` is malformed or names an unknown tensor.
    """
    outputs = body.get("outputs")
    if outputs is None:
        return list(OUTPUTS)
    if not isinstance(outputs, list):
        raise RequestError("outputs must be a list", field="outputs")
    names = []
    for i, output in enumerate(outputs):
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS:
            known = ", ".join(OUTPUTS)
            raise RequestError(f"outputs[{i}].name names no output: known are {known}", field=f"outputs[{i}].name")
        names.append(name)
    return names or list(OUTPUTS)


def encode(answers: Sequence[Answer], body: dict[str, Any], model_name: str) -> tuple[dict[str, Any], bytes]:
    """The v2 response to ``body``, and the data of those outputs that are wanted as binary."""
    columns: dict[str, list[Any]] = {name: [] for name in OUTPUTS}
    for index, answer in enumerate(answers):
        for place in answer.order:
            columns["request_index"].append(index)
            columns["item_id"].append("" if answer.item_ids is None else answer.item_ids[place])
            columns["probability"].append(answer.probability[place])
            columns["uncertainty"].append(answer.uncertainty[place])
            columns["num_paths"].append(answer.num_paths[place])
            columns["rank"].append(answer.rank[place])
            columns["model_version"].append(answer.model_version)
    binary, outputs, tail = wants_binary(body), [], []
    for name in wanted_outputs(body):
        output: dict[str, Any] = {"name": name, "shape": [len(columns[name])], "datatype": OUTPUTS[name]}
        if binary is None or name in binary:
            tail.append(pack(OUTPUTS[name], columns[name]))
            output["parameters"] = {SIZE: len(tail[-1])}
        else:
            output["data"] = columns[name]
        outputs.append(output)
    out: dict[str, Any] = {"model_name": model_name, "model_version": answers[0].model_version}
    if "id" in body:
        out["id"] = body["id"]
    flags = [
        {
            "cold_user": a.cold_user,
            "defaulted": list(a.defaulted),
            "cold_items": sum(a.cold_items),
            "stale_user": a.stale_user,
            "stale_items": sum(a.stale_items),
            "default_features": list(a.default_features),
            "paths_capped": a.paths_capped,
        }
        for a in answers
    ]
    out["parameters"] = {
        "model_version": answers[0].model_version,
        "bundle_hash": answers[0].bundle_hash,
        "flags": orjson.dumps(flags).decode(),  # parameter values are scalars in this protocol
    }
    out["outputs"] = outputs
    return out, b"".join(tail)
