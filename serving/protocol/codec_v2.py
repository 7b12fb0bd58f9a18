"""Open Inference v2: one BYTES tensor ``request`` of shape [n] in, each element one request as JSON text; or one request in
tensors by field (:mod:`serving.protocol.v2_fields`). Tensors are JSON or binary (:mod:`serving.protocol.v2_tensors`).

The answers of all n requests stand one after the other in flat output tensors; ``request_index`` says whose each is.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Any

import orjson

from serving.protocol import json_text, v2_fields
from serving.protocol.requests import Request, RequestParser
from serving.protocol.v2_tensors import SIZE, WANTED, WANTED_ALL, pack, parameters, read, refuse_unknown, wants_binary
from serving.scorer import Answer
from thinktwice.errors import RequestError

INPUT = "request"
KEYS = (
    "id",
    "model_name",
    "model_version",
    "parameters",
    "inputs",
    "outputs",
)  # KServe's client names the model here too
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


def requests(
    body: dict[str, Any], tail: bytes, parser: RequestParser, model_name: str, model_version: str
) -> list[Request]:
    """The requests of a v2 body; ``tail`` is what follows its JSON.

    Args:
        model_name, model_version: of this model, which the body may name.

    Raises:
        RequestError: it is neither the tensor ``request`` with one JSON object per element, nor tensors by field; or it is meant for
            another model.
    """
    refuse_unknown(body, KEYS, "the body")
    for name in ("id", "model_name", "model_version"):
        if not isinstance(body.get(name), (str, NoneType)):
            raise RequestError(f"{name} must be a string", field=name)
    for name, served in (("model_name", model_name), ("model_version", model_version)):
        if (given := body.get(name)) is not None and given != served:
            raise RequestError(
                f"{name} is {given[:64]!r}, and this is {served!r}: ask the other model, or leave {name} out",
                field=name,
            )
    tensors = read(body["inputs"], tail, vectors=parser.vectors, widens=parser.widens)
    texts = next((tensor for tensor in tensors if tensor.name == INPUT), None)
    known = (WANTED_ALL,) if texts is not None else (WANTED_ALL, *v2_fields.LIMITS)
    own = parameters(body, known=known)
    if texts is None:
        return [v2_fields.parse(tensors, own, parser)]
    if len(tensors) != 1:
        raise RequestError(f"inputs must hold {INPUT!r} alone, or one tensor per field", field="inputs")
    if texts.datatype != "BYTES":
        raise RequestError(f"{texts.path}.datatype must be BYTES", field=f"{texts.path}.datatype")
    if len(texts.shape) != 1:
        raise RequestError(f"{texts.path}.shape must be one size", field=f"{texts.path}.shape")
    path = f"{texts.path}.data"
    return parser.parse_all([_decode(text, f"{path}[{i}]") for i, text in enumerate(texts.values)], path)


def _decode(element: Any, path: str) -> Any:
    if not isinstance(element, str):
        raise RequestError(f"{path} must be a string that contains one JSON object", field=path)
    return json_text.loads(element, path, path)


def wanted_outputs(body: dict[str, Any]) -> dict[str, bool]:
    """The output tensors that the caller asked for, all by default, and whether each as binary.

    Raises:
        RequestError: ``outputs`` is malformed or names an unknown tensor.
    """
    binary = wants_binary(body, WANTED_ALL, False, known=None)  # the others were looked at with the inputs
    outputs = body.get("outputs")
    if outputs is None:
        outputs = []
    if not isinstance(outputs, list):
        raise RequestError("outputs must be a list", field="outputs")
    wanted = {}
    for i, output in enumerate(outputs):
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS:
            known = ", ".join(OUTPUTS)
            raise RequestError(f"outputs[{i}].name names no output: known are {known}", field=f"outputs[{i}].name")
        refuse_unknown(output, ("name", "parameters"), f"outputs[{i}]", f"outputs[{i}].")
        wanted[name] = wants_binary(output, WANTED, binary, f"outputs[{i}].")
    return wanted or dict.fromkeys(OUTPUTS, binary)


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
    outputs, tail = [], []
    for name, binary in wanted_outputs(body).items():
        output: dict[str, Any] = {"name": name, "shape": [len(columns[name])], "datatype": OUTPUTS[name]}
        if binary:
            tail.append(pack(OUTPUTS[name], columns[name]))
            output["parameters"] = {SIZE: len(tail[-1])}
        else:
            output["data"] = columns[name]
        outputs.append(output)
    out: dict[str, Any] = {"model_name": model_name, "model_version": answers[0].model_version}
    if body.get("id") is not None:
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
