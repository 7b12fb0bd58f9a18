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

from serving.protocol import v2_tensors
from serving.protocol.codec_v2 import V2
from serving.protocol.faults import Checked, Fault, Words, json_path
from serving.protocol.requests import RequestParser
from serving.protocol.v2_fields import moved
from serving.protocol.v2_tensors import HEADER, NUMBERS, Tensor, pack
from serving.service import Service
from tests.serving.fakes import make_service
from tests.serving.small import MODEL_VERSION, SCHEMA
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


BODY: Checked[Any] = Checked(
    V2(RequestParser(SCHEMA, online=True), "ctr", MODEL_VERSION).fields, Words({"inputs": "tensors", "shape": "sizes"})
)


def read(inputs: Any, tail: bytes) -> list[Tensor]:
    """The tensors of a body."""
    try:
        return v2_tensors.read(BODY.read({"inputs": inputs}).inputs, tail)
    except Fault as fault:
        raise fault.error(json_path()) from None


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


def from_sdk(kserve: Any, inputs: list[dict[str, Any]], parameters: dict[str, Any] | None = None) -> Any:
    """The SDK's request with binary tensors."""
    kinds = {"BYTES": np.object_, "FP32": np.float32, "FP64": np.float64, "INT64": np.int64}
    made = []
    for value in inputs:
        one = kserve.InferInput(value["name"], value["shape"], value["datatype"])
        array = np.array(value["data"], kinds[value["datatype"]]).reshape(value["shape"])
        one.set_data_from_numpy(array, binary_data=True)
        made.append(one)
    return kserve.InferRequest(model_name="ctr", infer_inputs=made, request_id="q", parameters=parameters)


def to_sdk(
    kserve: Any, inputs: list[dict[str, Any]], parameters: dict[str, Any] | None = None
) -> tuple[bytes, dict[str, str]]:
    """A binary body as the SDK writes it, which names the model too."""
    body, length = from_sdk(kserve, inputs, parameters).to_rest()
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


def test_a_missing_value_has_a_form_in_every_tensor(service: Service) -> None:
    """Null in JSON; NaN, a vector of NaN and the empty text in binary."""
    rows: list[dict[str, Any]] = [{"genre": "g1", "price": 3.0, "cover": [0.0, 0.5, 1.0]}, {}]
    expected = outputs(ask(service, {"inputs": [tensor("request", "BYTES", [json.dumps({"rows": rows})])]}).body)
    nulls = [
        tensor("genre", "BYTES", ["g1", None]),
        tensor("price", "FP64", [3.0, None]),
        tensor("history", "BYTES", ["", ""], [2, 1]),
    ]
    cover = np.array([[0.0, 0.5, 1.0], [np.nan] * 3], "<f4").tobytes()
    vector = {"name": "cover", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": len(cover)}}
    text = json.dumps({"inputs": [*nulls, vector]}).encode()
    assert outputs(ask(service, text + cover, {HEADER: str(len(text))}).body) == expected
    tails = [pack("BYTES", ["g1", ""]), pack("FP64", [3.0, float("nan")]), cover]
    binary = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(tail)}}
        for name, kind, shape, tail in zip(
            ("genre", "price", "cover"), ("BYTES", "FP64", "FP32"), ([2], [2], [2, 3]), tails, strict=True
        )
    ]
    text = json.dumps({"inputs": binary}).encode()
    assert outputs(ask(service, text + b"".join(tails), {HEADER: str(len(text))}).body) == expected


def test_ids_may_be_numbers(service: Service) -> None:
    numbers = [tensor("user_id", "INT64", [7]), tensor("candidates", "INT32", [1, 2])]
    texts = [tensor("user_id", "BYTES", ["7"]), tensor("candidates", "BYTES", ["1", "2"])]
    time = tensor("timestamp", "INT64", [0])
    assert ask(service, {"inputs": [*numbers, time]}).body == ask(service, {"inputs": [*texts, time]}).body


def test_single_outputs_as_binary(service: Service) -> None:
    wanted = [{"name": "probability", "parameters": {"binary_data": True}}, {"name": "rank"}]
    reply = ask(service, {"inputs": BY_CANDIDATE, "outputs": wanted})
    length = int(reply.headers[HEADER])
    first, second = json.loads(reply.body[:length])["outputs"]
    assert "data" not in first and first["parameters"] == {"binary_data_size": 24}
    plain = outputs(ask(service, {"inputs": BY_CANDIDATE}).body)
    assert np.frombuffer(reply.body[length:], "<f8").tolist() == plain["probability"]
    assert second["data"] == plain["rank"]
    wanted[0]["parameters"] = {"binary_data": False}  # an output's own word counts more than that of the body
    body = {"inputs": BY_CANDIDATE, "outputs": wanted, "parameters": {"binary_data_output": True}}
    reply = ask(service, body)
    first, second = json.loads(reply.body[: int(reply.headers[HEADER])])["outputs"]
    assert first["data"] == plain["probability"] and "data" not in second


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(max_size=20), min_size=1, max_size=8),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8),
)
def test_what_is_packed_is_what_is_read(words: list[str], numbers: list[float]) -> None:
    tail = pack("BYTES", words) + pack("FP32", numbers)
    sizes = len(pack("BYTES", words)), len(pack("FP32", numbers))
    inputs = [
        {"name": "a", "datatype": "BYTES", "shape": [len(words)], "parameters": {"binary_data_size": sizes[0]}},
        {"name": "b", "datatype": "FP32", "shape": [len(numbers)], "parameters": {"binary_data_size": sizes[1]}},
    ]
    first, second = read(inputs, tail)
    assert first.values == words and second.values == numbers


@pytest.mark.parametrize("datatype", sorted(NUMBERS))
def test_every_kind_of_number_is_read(datatype: str) -> None:
    values = [True, False] if datatype == "BOOL" else [0, 1, 100]
    raw = pack(datatype, values)
    inputs = [{"name": "a", "datatype": datatype, "shape": [len(values)], "parameters": {"binary_data_size": len(raw)}}]
    assert read(inputs, raw)[0].values == values
    assert read([tensor("a", datatype, list(values))], b"")[0].values == values


USER = BY_FIELD[0]
BAD: list[tuple[Any, str, str]] = [
    ([], "inputs", "has 0 tensors, at least 1"),
    ([USER] * 65, "inputs", "has 65 tensors, at most 64"),
    ([3], "inputs[0]", "an object"),
    ([{**USER, "name": ""}], "inputs[0].name", "must not be empty"),
    ([{**USER, "datatype": "FP8"}], "inputs[0].datatype", "'BYTES', not 'FP8'"),
    ([{**USER, "datatype": ["BYTES"]}], "inputs[0].datatype", "not a list"),
    ([{**USER, "shape": [2, 1, 1]}], "inputs[0].shape", "has 3 sizes, at most 2"),
    ([{**USER, "shape": [0]}], "inputs[0].shape[0]", "at least 1, not 0"),
    ([{**USER, "shape": [True]}], "inputs[0].shape[0]", "an integer, not true"),
    ([{**USER, "shape": [1 << 40]}], "inputs[0].shape[0]", "at most 1048576"),
    ([{**USER, "shape": [3]}], "inputs[0].data", "2 values and not 3"),
    ([{**USER, "data": 3}], "inputs[0].data", "a list"),
    ([USER, USER], "inputs[1].name", "twice"),
    ([{**USER, "data": ["u1", 2]}], "inputs[0].data[1]", "a string, as BYTES says"),
    ([tensor("bid", "INT64", [1, 2.5])], "inputs[0].data[1]", "an integer"),
    ([tensor("bid", "FP32", [True])], "inputs[0].data[0]", "a number"),
    ([tensor("bid", "BOOL", [1])], "inputs[0].data[0]", "true or false"),
    ([{**BY_FIELD[4], "data": [[0.0, 0.5, 1.0], [1.0, 0.0]]}], "inputs[0].data[1]", "3 values"),
    ([{**BY_FIELD[4], "data": [[0.0, 0.5, 1.0], 1.0]}], "inputs[0].data[1]", "3 values"),
    ([{**USER, "parameters": []}], "inputs[0].parameters", "an object"),
    ([{"name": "a", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}], "inputs[0].parameters.binary_data_size", "at most 0"),
    ([{"name": "a", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": -1}}], "inputs[0].parameters.binary_data_size", "at least 0"),
    ([{**USER, "parameters": {"binary_data_size": 0}}], "inputs[0].data", "absent"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "field", "words"), BAD)
def test_bad_tensors_are_named(inputs: Any, field: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        read(inputs, b"")
    assert caught.value.field == field
    assert str(caught.value).startswith(field.split("[")[0])


@pytest.mark.parametrize(
    ("tail", "datatype", "words"),
    [
        (b"\x05\x00\x00\x00ab", "BYTES", "truncated"),
        (b"\x05\x00", "BYTES", "truncated"),
        (b"\xff\xff\xff\xff", "BYTES", "truncated"),
        (b"\x01\x00\x00\x00\xff", "BYTES", "not UTF-8"),
        (b"\x01\x00\x00\x00a\x01\x00\x00\x00b", "BYTES", "2 elements of data and not 1"),
        (b"", "BYTES", "0 elements of data and not 1"),
        (b"\x00" * 3, "FP32", "3 bytes of data and not 4"),
        (b"\x00" * 9, "FP64", "9 bytes of data and not 8"),
    ],
)
def test_bad_binary_data_are_named(tail: bytes, datatype: str, words: str) -> None:
    inputs = [{"name": "a", "datatype": datatype, "shape": [1], "parameters": {"binary_data_size": len(tail)}}]
    with pytest.raises(RequestError, match=words) as caught:
        read(inputs, tail)
    assert caught.value.field == "inputs[0]"
    with pytest.raises(RequestError, match="belong to no tensor"):
        read([USER], tail + b"x")


def changed(inputs: list[dict[str, Any]], number: int, **more: Any) -> list[dict[str, Any]]:
    return [{**value, **more} if i == number else value for i, value in enumerate(inputs)]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"inputs": changed(BY_CANDIDATE, 0, data=[""])}, "inputs[0].data[0]", "must not be empty"),
    ({"inputs": changed(BY_CANDIDATE, 1, data=["i1", "x" * 600, "i2"])}, "inputs[1].data[1]", "600 characters"),
    ({"inputs": changed(BY_CANDIDATE, 1, shape=[3, 1])}, "inputs[1].shape", "one size"),
    ({"inputs": changed(BY_CANDIDATE, 1, data=["i"] * 1001, shape=[1001])}, "inputs[1]", "has 1001 item ids, at most 1000"),
    ({"inputs": changed(BY_CANDIDATE, 2, data=["a", "b"], shape=[2])}, "inputs[2].shape", "[1] beside candidates"),
    ({"inputs": changed(BY_CANDIDATE, 3, datatype="BYTES", data=["x"])}, "inputs[3].data[0]", "must be a number"),
    ({"inputs": changed(BY_CANDIDATE, 4, data=[-1])}, "inputs[4].data[0]", "Unix seconds"),
    ({"inputs": BY_CANDIDATE[1:]}, "inputs.user_id", "is missing: send the id of the user"),
    ({"inputs": [*BY_CANDIDATE, tensor("colour", "BYTES", ["a"])]}, "inputs[5].data[0]", "inputs[5].data[0] (colour) is an unknown key"),
    ({"inputs": BY_CANDIDATE, "parameters": {"k": 0}}, "parameters.k", "parameters.k must be at least 1, not 0"),
    ({"inputs": BY_CANDIDATE, "parameters": {"deadline_ms": "x"}}, "parameters.deadline_ms", "a number, not 'x'"),
    ({"inputs": BY_CANDIDATE, "parameters": 3}, "parameters", "an object"),
    ({"inputs": BY_CANDIDATE, "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output", "true or false, not 1"),
    ({"inputs": BY_CANDIDATE, "outputs": [{"name": "rank", "parameters": {"binary_data": 1}}]}, "outputs[0].parameters.binary_data", "true or false, not 1"),
    ({"inputs": BY_CANDIDATE, "outputs": [{"name": "rank", "parameters": 1}]}, "outputs[0].parameters", "an object"),
    ({"inputs": [*BY_CANDIDATE, tensor("request", "BYTES", ["{}"])]}, "inputs", "'request' alone"),
    ({"inputs": changed(BY_FIELD, 2, shape=[1], data=[1.0])}, "inputs[2].shape", "begin with 2, the rows of inputs[0]"),
    ({"inputs": changed(BY_FIELD, 2, datatype="BYTES", data=["1", "x"])}, "inputs[2].data[1]", "must be a number"),
    ({"inputs": changed(BY_FIELD, 4, data=[0.0, 0.5, 1.0, 1.0, None, 1.0])}, "inputs[4].data[1][1]", "must be a number, not null"),
    ({"inputs": changed(BY_FIELD, 4, data=[0.0] * 4, shape=[2, 2])}, "inputs[4].data[0]", "2 elements, at least 3"),
    ({"inputs": changed(BY_FIELD, 0, shape=[2, 1])}, "inputs[0].data[0]", "must be a string or a number, not a list"),
    ({"inputs": [*BY_FIELD, tensor("colour", "BYTES", ["a", "b"])]}, "inputs[5].data[0]", "inputs[5].data[0] (colour) is an unknown key"),
    ({"inputs": [tensor("slot", "BYTES", ["a"] * 1001)]}, "inputs", "have 1001 rows, at most 1000"),
    ({"inputs": BY_FIELD, "model_name": 3}, "model_name", "a string"),
    ({"inputs": BY_FIELD, "model_name": "other"}, "model_name", "model_name is 'other', and this is 'ctr'"),
    ({"inputs": BY_FIELD, "model_version": "1"}, "model_version", "and this is 'small-20260101-abc'"),
    ({"inputs": BY_CANDIDATE, "parameters": {"deadline": 5}}, "parameters.deadline", "parameters.deadline is an unknown key: known are binary_data_output, deadline_ms, k"),
    ({"inputs": [tensor("request", "BYTES", ["{}"])], "parameters": {"k": 2}}, "parameters.k", "is an unknown key: known are binary_data_output"),
    ({"inputs": changed(BY_FIELD, 0, parameters={"binary_size": 2})}, "inputs[0].parameters.binary_size", "unknown key"),
    ({"inputs": changed(BY_FIELD, 0, dtype="BYTES")}, "inputs[0].dtype", "dtype is an unknown key: known are data, datatype, name, parameters, shape"),
    ({"inputs": BY_FIELD, "outputs": [{"name": "rank", "parameters": {"binary": True}}]}, "outputs[0].parameters.binary", "unknown key"),
    ({"inputs": BY_FIELD, "outputs": [{"name": "rank", "binary_data": True}]}, "outputs[0].binary_data", "unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field", "words"), WRONG)
def test_what_is_wrong_with_a_request_is_named_by_its_place_in_the_body(
    service: Service, body: dict[str, Any], field: str, words: str
) -> None:
    reply = ask(service, body)
    assert reply.status == 400
    error = json.loads(reply.body)
    assert error["field"] == field
    assert words in error["error"]


RANGES = {
    **{f"INT{b}": (-(2 ** (b - 1)), 2 ** (b - 1) - 1, 2 ** (b - 1), -(2 ** (b - 1)) - 1) for b in (8, 16, 32, 64)},
    **{f"UINT{b}": (0, 2**b - 1, 2**b, -1) for b in (8, 16, 32, 64)},
    "FP16": (65504, -65519.9, 65520, -1e5), "FP32": (3.4e38, -3.4028235e38, 3.5e38, -1e39), "BOOL": (True, False, 1, "true"),
}  # fmt: skip


@pytest.mark.parametrize("datatype", RANGES)
def test_a_value_lies_within_its_datatype(service: Service, datatype: str) -> None:
    low, high, *beyond = RANGES[datatype]
    name = "bid" if datatype != "BOOL" else "slot"
    for value in (low, high):
        assert ask(service, {"inputs": [tensor(name, datatype, [value])]}).status == 200
    for value in beyond:
        reply = ask(service, {"inputs": [tensor(name, datatype, [value])]})
        error = json.loads(reply.body)
        assert (reply.status, error["field"]) == (400, "inputs[0].data[0]"), value
        assert datatype in error["error"]


def test_a_truth_value_in_binary_is_one_of_two_bytes(service: Service) -> None:
    for byte, status in ((b"\x00", 200), (b"\x01", 200), (b"\x02", 400), (b"\xff", 400)):
        text = json.dumps(
            {"inputs": [{"name": "slot", "datatype": "BOOL", "shape": [1], "parameters": {"binary_data_size": 1}}]}
        )
        assert ask(service, text.encode() + byte, {HEADER: str(len(text))}).status == status


def test_null_is_the_same_as_absent(service: Service) -> None:
    plain = ask(service, {"inputs": BY_CANDIDATE})
    nulls = {"id": None, "model_name": None, "model_version": None, "outputs": None}
    some = {"binary_data_output": None, "k": None, "deadline_ms": None}
    for more in (
        nulls,
        {"parameters": None},
        {"parameters": some},
        {"outputs": [{"name": n, "parameters": None} for n in outputs(plain.body)]},
    ):
        assert ask(service, {"inputs": BY_CANDIDATE, **more}).body == plain.body
    whole = {**ONE, "k": None, "deadline_ms": None, "rows": None}
    without = {name: value for name, value in ONE.items() if name != "k"}
    assert ask(service, {"instances": [whole]}).body == ask(service, {"instances": [without]}).body
    rows = {"rows": [{"slot": "s1"}]}
    absent = dict.fromkeys(("user_id", "candidates", "context", "k", "deadline_ms"))
    assert ask(service, {"instances": [{**rows, **absent}]}).body == ask(service, {"instances": [rows]}).body
    assert ask(service, {"instances": [{**ONE, "context": None}]}).status == 200
    missing = {"inputs": [*BY_CANDIDATE[:3], {**tensor("bid", "FP64", [None])}, tensor("timestamp", "FP64", [0.0])]}
    text = json.dumps(
        {
            "inputs": [
                *BY_CANDIDATE[:3],
                {"name": "bid", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}},
                BY_CANDIDATE[4],
            ]
        }
    )
    nan = ask(service, text.encode() + np.array([np.nan]).tobytes(), {HEADER: str(len(text))})
    assert nan.body == ask(service, missing).body


def test_the_model_that_a_body_names_is_this_one(service: Service) -> None:
    named = {"model_name": "ctr", "model_version": "small-20260101-abc"}
    assert ask(service, {"inputs": BY_FIELD, **named}).body == ask(service, {"inputs": BY_FIELD}).body


@pytest.mark.parametrize("loc", [(), (0,), (0, "rows"), (0, "context"), (0, "rows", 3)])
def test_a_location_that_is_no_tensor_is_all_inputs(loc: tuple[str | int, ...]) -> None:
    assert moved(Fault(loc, "is wrong"), {"a": Tensor("a", "FP32", (1,), [1.0], 0)}).loc == ("inputs",)


@pytest.mark.parametrize("length", ["x", "-1", "99999", "1e2", "²", "9" * 5000, ""])
def test_a_wrong_length_of_the_json_is_refused(service: Service, length: str) -> None:
    reply = ask(service, {"inputs": BY_FIELD}, {HEADER: length})
    assert reply.status == 400 and json.loads(reply.body)["field"] == HEADER


def test_only_tensors_may_stand_behind_the_json(service: Service) -> None:
    text = json.dumps({"instances": [ONE]}).encode()
    reply = ask(service, text + b"{}", {HEADER: str(len(text))})
    assert (reply.status, json.loads(reply.body)["field"]) == (400, "body")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["request", "user_id", "candidates", "slot", "bid", "history", "cover", "x"]) | ANY,
        "datatype": st.sampled_from(["BYTES", "FP32", "FP64", "INT64", "BOOL"]) | ANY,
        "shape": st.lists(st.integers(0, 4), max_size=3) | ANY,
        "data": st.lists(st.sampled_from(["i1", "", 0, 1.5, None, True, "{}"]), max_size=6) | ANY,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40)}) | ANY,
    },
)


@settings(max_examples=400, deadline=None)
@given(st.lists(TENSOR, max_size=5), st.none() | ANY, st.binary(max_size=40), st.integers(-3, 3))
def test_no_tensors_make_it_fail(service: Service, inputs: Any, parameters: Any, tail: bytes, off: int) -> None:
    text = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    reply = ask(service, text + tail, {HEADER: str(len(text) + off)})
    assert reply.status in (200, 400), reply.body
    if reply.status == 400:
        assert json.loads(reply.body)["field"]
