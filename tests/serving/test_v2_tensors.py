"""Tensors of the Open Inference protocol: by field and as binary, with the SDK of KServe as the other side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.service import Service
from serving.v2_tensors import HEADER, pack, read, request_of
from tests.serving.fakes import make_service
from thinktwice.errors import RequestError

CONTEXT = {"slot": "s1", "bid": 0.5, "timestamp": 0}
ONE: dict[str, Any] = {"user_id": "u1", "candidates": ["i1", "i2", "never"], "context": CONTEXT, "k": 2}
ROWS = [
    {"user_id": "u1", "item_id": "i7", "price": 3.0, "history": ["i1", "i2"], "cover": [0.0, 0.5, 1.0]},
    {"user_id": "u2", "item_id": "ä", "price": 1.0, "history": [], "cover": [1.0, 0.0, 0.25]},
]


@pytest.fixture(scope="module")
def service(small: Path) -> Service:
    return make_service(small / "bundle")


@pytest.fixture(scope="module")
def kserve() -> Any:
    """The SDK; it reads the command line when it is imported."""
    before, sys.argv = sys.argv, sys.argv[:1]
    try:
        import kserve
    finally:
        sys.argv = before
    return kserve


def tensor(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


BY_CANDIDATE = [
    tensor("user_id", "BYTES", ["u1"]),
    tensor("candidates", "BYTES", ["i1", "i2", "never"]),
    tensor("slot", "BYTES", ["s1"]),
    tensor("bid", "FP64", [0.5]),
    tensor("timestamp", "INT64", [0]),
]
BY_FIELD = [
    tensor("user_id", "BYTES", ["u1", "u2"]),
    tensor("item_id", "BYTES", ["i7", "ä"]),
    tensor("price", "FP32", [3.0, 1.0]),
    tensor("history", "BYTES", ["i1", "i2", "", ""], [2, 2]),
    tensor("cover", "FP32", [0.0, 0.5, 1.0, 1.0, 0.0, 0.25], [2, 3]),
]


def outputs(body: bytes) -> dict[str, list[Any]]:
    return {o["name"]: o["data"] for o in json.loads(body)["outputs"]}


def ask(service: Service, body: Any, headers: dict[str, str] | None = None) -> Any:
    return service.answer(body if isinstance(body, bytes) else json.dumps(body).encode(), headers or {})


def test_tensors_by_field_are_the_same_request(service: Service) -> None:
    text = {"inputs": [tensor("request", "BYTES", [json.dumps(ONE)])]}
    natural = {"inputs": BY_CANDIDATE, "parameters": {"k": 2}}
    assert outputs(ask(service, natural).body) == outputs(ask(service, text).body)
    rows = {"inputs": [tensor("request", "BYTES", [json.dumps({"rows": ROWS})])]}
    assert outputs(ask(service, {"inputs": BY_FIELD}).body) == outputs(ask(service, rows).body)
    nested = [*BY_FIELD[:3], {**BY_FIELD[3], "data": [["i1", "i2"], ["", ""]]}, BY_FIELD[4]]
    assert outputs(ask(service, {"inputs": nested}).body) == outputs(ask(service, rows).body)


def to_sdk(kserve: Any, inputs: list[dict[str, Any]], parameters: dict[str, Any] | None = None) -> tuple[bytes, dict[str, str]]:
    """A binary body as the SDK writes it."""
    kinds = {"BYTES": np.object_, "FP32": np.float32, "FP64": np.float64, "INT64": np.int64}
    made = []
    for value in inputs:
        one = kserve.InferInput(value["name"], value["shape"], value["datatype"])
        array = np.array(value["data"], kinds[value["datatype"]]).reshape(value["shape"])
        one.set_data_from_numpy(array, binary_data=True)
        made.append(one)
    request = kserve.InferRequest(model_name="ctr", infer_inputs=made, request_id="q", parameters=parameters)
    body, length = request.to_rest()
    assert isinstance(body, bytes) and length is not None, "it is binary"
    return body, {HEADER: str(length)}


def test_the_sdk_speaks_binary_with_us(service: Service, kserve: Any) -> None:
    body, headers = to_sdk(kserve, BY_CANDIDATE, {"k": 2, "binary_data_output": True})
    reply = ask(service, body, headers)
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/octet-stream"
    answer = kserve.InferResponse.from_bytes(reply.body, int(reply.headers[HEADER]))
    plain = outputs(ask(service, {"inputs": BY_CANDIDATE, "parameters": {"k": 2}}).body)
    for output in answer.outputs:
        found = output.as_numpy()
        expected = plain[output.name]
        assert [v.decode() if isinstance(v, bytes) else v for v in found.tolist()] == expected, output.name
    assert {output.name for output in answer.outputs} == set(plain)
    body, headers = to_sdk(kserve, BY_FIELD)
    reply = ask(service, body, headers)
    assert reply.headers["content-type"] == "application/json"
    assert outputs(reply.body) == outputs(ask(service, {"inputs": BY_FIELD}).body)


def test_single_outputs_as_binary(service: Service) -> None:
    wanted = [{"name": "probability", "parameters": {"binary_data": True}}, {"name": "rank"}]
    reply = ask(service, {"inputs": BY_CANDIDATE, "outputs": wanted})
    length = int(reply.headers[HEADER])
    first, second = json.loads(reply.body[:length])["outputs"]
    assert "data" not in first and first["parameters"] == {"binary_data_size": 24}
    plain = outputs(ask(service, {"inputs": BY_CANDIDATE}).body)
    assert np.frombuffer(reply.body[length:], "<f8").tolist() == plain["probability"]
    assert second["data"] == plain["rank"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=8), st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8))
def test_what_is_packed_is_what_is_read(words: list[str], numbers: list[float]) -> None:
    tail = pack("BYTES", words) + pack("FP32", numbers)
    sizes = len(pack("BYTES", words)), len(pack("FP32", numbers))
    inputs = [
        {"name": "a", "datatype": "BYTES", "shape": [len(words)], "parameters": {"binary_data_size": sizes[0]}},
        {"name": "b", "datatype": "FP32", "shape": [len(numbers)], "parameters": {"binary_data_size": sizes[1]}},
    ]
    first, second = read(inputs, tail)
    assert first.values == words and second.values == numbers


BAD: list[tuple[Any, str, str]] = [
    ([], "inputs", "1 to 64"),
    ([3], "inputs[0]", "an object"),
    ([{**BY_FIELD[0], "name": ""}], "inputs[0].name", "a name"),
    ([{**BY_FIELD[0], "datatype": "FP16"}], "inputs[0].datatype", "one of"),
    ([{**BY_FIELD[0], "shape": [2, 1, 1]}], "inputs[0].shape", "one or two"),
    ([{**BY_FIELD[0], "shape": [0]}], "inputs[0].shape", "one or two"),
    ([{**BY_FIELD[0], "shape": [3]}], "inputs[0].data", "3 values"),
    ([{**BY_FIELD[0], "data": 3}], "inputs[0].data", "a list"),
    ([BY_FIELD[0], BY_FIELD[0]], "inputs", "twice"),
    ([{**BY_FIELD[0], "parameters": {"binary_data_size": 5}}], "inputs[0].parameters", "left behind"),
    ([{**BY_FIELD[0], "parameters": {"binary_data_size": -1}}], "inputs[0].parameters", "left behind"),
]


@pytest.mark.parametrize(("inputs", "field", "words"), BAD)
def test_bad_tensors_are_named(inputs: Any, field: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        read(inputs, b"")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("tail", "datatype", "words"),
    [
        (b"\x05\x00\x00\x00ab", "BYTES", "end within"),
        (b"\x05\x00", "BYTES", "end within"),
        (b"\x01\x00\x00\x00\xff", "BYTES", "no UTF-8"),
        (b"\x01\x00\x00\x00a\x01\x00\x00\x00b", "BYTES", "1 elements"),
        (b"\x00" * 3, "FP32", "4 bytes"),
        (b"\x00" * 9, "FP64", "8 bytes"),
    ],
)
def test_bad_binary_data_are_named(tail: bytes, datatype: str, words: str) -> None:
    inputs = [{"name": "a", "datatype": datatype, "shape": [1], "parameters": {"binary_data_size": len(tail)}}]
    with pytest.raises(RequestError, match=words):
        read(inputs, tail)
    with pytest.raises(RequestError, match="belong to no input"):
        read([BY_FIELD[0]], tail)


def test_shapes_that_do_not_fit_each_other() -> None:
    with pytest.raises(RequestError, match="same number of rows"):
        request_of(read([BY_FIELD[0], tensor("price", "FP32", [1.0])], b""), {})
    with pytest.raises(RequestError, match=r"shape \[1\] beside candidates"):
        request_of(read([*BY_CANDIDATE[1:2], tensor("slot", "BYTES", ["a", "b"])], b""), {})
    with pytest.raises(RequestError, match="1 to 1000 rows"):
        request_of(read([tensor("slot", "BYTES", ["a"] * 1001)], b""), {})


@pytest.mark.parametrize("length", ["x", "-1", "99999", "1e2", "²"])
def test_a_wrong_length_of_the_json_is_refused(service: Service, length: str) -> None:
    reply = ask(service, {"inputs": BY_FIELD}, {HEADER: length})
    assert reply.status == 400 and json.loads(reply.body)["field"] == HEADER


def test_unknown_fields_are_refused_as_ever(service: Service) -> None:
    for inputs in ([*BY_FIELD, tensor("colour", "BYTES", ["a", "b"])], [*BY_CANDIDATE, tensor("colour", "BYTES", ["a"])]):
        reply = ask(service, {"inputs": inputs})
        assert reply.status == 400 and "colour" in json.loads(reply.body)["error"]
