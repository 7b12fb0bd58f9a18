"""Attacks by class, against both servers: each is answered alike, in the one form of errors, and harms nobody else.

What only one server decides for itself is in tests/contract/test_manners.py (the KServe predictor's bounds) and in
tests/server/test_gateway.py (what a gateway must refuse in front of TorchServe).
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from serving.protocol.v2_tensors import HEADER, pack
from tests.contract.conftest import LARGEST, Servers
from tests.contract.test_contract import CONTEXT, ONE, ROW, V1, V2, Reply, ask, both, v2
from tests.serving.test_v2_tensors import BY_CANDIDATE, BY_FIELD

pytestmark = pytest.mark.server

GOOD = {"instances": [ONE]}
RAW = json.dumps(GOOD).encode()
JSON = {"Content-Type": "application/json"}
DEEP = 50_000
BODY_FIELDS = ("body", "instances", "inputs")

Case = tuple[str, str, Any, dict[str, str], int, str]  # name, path, body, headers, status, start of `field`


def one(**changes: Any) -> dict[str, Any]:
    return {"instances": [{**ONE, **changes}]}


def tensors(place: int, **changes: Any) -> dict[str, Any]:
    """The candidates form with one tensor changed: 0 is user_id, 1 candidates, 4 timestamp."""
    return {"inputs": [{**t, **changes} if i == place else t for i, t in enumerate(BY_CANDIDATE)]}


def binary(
    size: Any, tail: bytes, shape: list[int] | None = None, *, header: str | None = None
) -> tuple[bytes, dict[str, str]]:
    """A body whose candidates are binary, and its headers."""
    inputs = [dict(tensor) for tensor in BY_CANDIDATE]
    del inputs[1]["data"]
    inputs[1] |= {"shape": shape or [2], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": inputs}).encode()
    return text + tail, {HEADER: header or str(len(text)), "Content-Type": "application/octet-stream"}


def json_cases() -> Iterator[Case]:
    for name, body in {
        "nothing": b"",
        "a half": RAW[:-3],
        "two documents": RAW + RAW,
        "NaN": b'{"instances": [{"rows": [{"bid": NaN}]}]}',
        "Infinity": b'{"instances": [{"rows": [{"bid": -Infinity}]}]}',
        "1e400": b'{"instances": [{"rows": [{"bid": 1e400}]}]}',
        "UTF-16": RAW.decode().encode("utf-16"),
        "no UTF-8": RAW.replace(b'"u1"', b'"\xff"'),
        "a lone surrogate": RAW.replace(b'"u1"', b'"\\ud800"'),
        "deep lists": b'{"instances": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        "deep objects": b'{"instances": [' + b'{"rows":' * (DEEP // 8) + b"1" + b"}" * (DEEP // 8) + b"]}",
        "a key twice": b'{"instances": [], "instances": [{"rows": [{}]}]}',
        "a number of 10,000 digits": b'{"instances": [{"rows": [{"price": ' + b"9" * 10_000 + b"}]}]}",
        "a comment": b'{"instances": [] /* x */}',
        "a byte order mark": b"\xef\xbb\xbf" + RAW[:-1],
    }.items():
        yield f"JSON: {name}", V1, body, {}, 400, ""
        yield f"JSON on the v2 path: {name}", V2, body, {}, 400, ""


def value_cases() -> Iterator[Case]:
    for name, body, field in (
        ("k of 0", one(k=0), "instances[0].k"),
        ("k as text", one(k="2"), "instances[0].k"),
        ("k as truth", one(k=True), "instances[0].k"),
        ("deadline of 0", one(deadline_ms=0), "instances[0].deadline_ms"),
        ("deadline as text", one(deadline_ms="5"), "instances[0].deadline_ms"),
        ("a user that is a list", one(user_id=["u1"]), "instances[0].user_id"),
        ("a user that is an object", one(user_id={"$gt": ""}), "instances[0].user_id"),
        ("candidates that are text", one(candidates="i1"), "instances[0].candidates"),
        ("a candidate that is an object", one(candidates=[{}]), "instances[0].candidates[0]"),
        ("too many candidates", one(candidates=["i"] * 1001), "instances[0].candidates"),
        ("a whole number beyond 64 bits", one(candidates=[1 << 70]), "instances[0].candidates[0]"),
        ("an inexact number", one(user_id=2.0**60), "instances[0].user_id"),
        ("context that is a list", one(context=[]), "instances[0].context"),
        ("an unknown field of context", one(context={**CONTEXT, "__proto__": 1}), "instances[0].context"),
        ("a time that is none", one(context={**CONTEXT, "timestamp": "yesterday"}), "instances[0].context.timestamp"),
        ("a time beyond all time", one(context={**CONTEXT, "timestamp": 1e300}), "instances[0].context.timestamp"),
        ("a misspelt key", one(deadline=5), "instances[0].deadline"),
        ("rows and candidates", one(rows=[{}]), "instances[0]"),
        (
            "a vector of another length",
            {"instances": [{"rows": [{**ROW, "cover": [1.0]}]}]},
            "instances[0].rows[0].cover",
        ),
        (
            "a vector of text",
            {"instances": [{"rows": [{**ROW, "cover": ["a", "b", "c"]}]}]},
            "instances[0].rows[0].cover",
        ),
        ("101 instances", {"instances": [ONE] * 101}, "instances"),
        ("a key beside instances", {**GOOD, "parameters": {}}, "parameters"),
    ):
        yield f"values: {name}", V1, body, {}, 400, field


def tensor_cases() -> Iterator[Case]:
    integers = {
        "INT8": (-129, 128),
        "UINT8": (-1, 256),
        "INT16": (-(1 << 15) - 1, 1 << 15),
        "UINT16": (-1, 1 << 16),
        "INT32": (-(1 << 31) - 1, 1 << 31),
        "UINT32": (-1, 1 << 32),
        "INT64": (-(1 << 63) - 1, 1 << 63),
        "UINT64": (-1, 1 << 64),
    }
    for datatype, outside in integers.items():
        for value in outside:
            body = tensors(1, datatype=datatype, shape=[1], data=[value])
            yield f"tensors: {value} as {datatype}", V2, body, {}, 400, "inputs[1].data" if abs(value) < 1 << 63 else ""
    for name, body, field in (
        ("a datatype that is none", tensors(1, datatype="INT128"), "inputs[1].datatype"),
        ("a negative size", tensors(1, shape=[-1]), "inputs[1].shape"),
        ("a size of 2^62", tensors(1, shape=[1 << 62]), "inputs[1].shape"),
        ("three sizes", tensors(1, shape=[1, 1, 3]), "inputs[1].shape"),
        ("more data than its shape", tensors(1, shape=[1]), "inputs[1].data"),
        ("a name twice", {"inputs": [*BY_CANDIDATE, BY_CANDIDATE[0]]}, "inputs[5].name"),
        ("a tensor of no field", {"inputs": [*BY_CANDIDATE, {**BY_CANDIDATE[3], "name": "nobody"}]}, "inputs"),
        ("a misspelt key of a tensor", tensors(0, dtype="BYTES"), "inputs[0].dtype"),
        ("a misspelt parameter", {"inputs": BY_CANDIDATE, "parameters": {"deadline": 5}}, "parameters.deadline"),
        ("a parameter of no meaning", {"inputs": BY_FIELD, "parameters": {"zzz": 2}}, "parameters.zzz"),
        ("k beside the text form", v2(ONE, parameters={"k": 1}), "parameters.k"),
        (
            "a misspelt parameter of a tensor",
            tensors(0, parameters={"binary_size": 1}),
            "inputs[0].parameters.binary_size",
        ),
        (
            "a misspelt parameter of an output",
            v2(ONE, outputs=[{"name": "rank", "parameters": {"binary": True}}]),
            "outputs[0]",
        ),
        ("another model", v2(ONE, model_name="other"), "model_name"),
        ("another version", v2(ONE, model_version="other"), "model_version"),
        ("a model that is a number", v2(ONE, model_name=1), "model_name"),
        ("an id that is an object", v2(ONE, id={}), "id"),
        ("an id that is a number", v2(ONE, id=0), "id"),
        ("a version that is false", v2(ONE, model_version=False), "model_version"),
        ("outputs that are an empty object", v2(ONE, outputs={}), "outputs"),
        ("outputs that are false", v2(ONE, outputs=False), "outputs"),
        ("parameters that are an empty list", v2(ONE, parameters=[]), "parameters"),
        ("parameters that are 0", tensors(0, parameters=0), "inputs[0].parameters"),
        (
            "a request that is not an object",
            {"inputs": [{**v2(ONE)["inputs"][0], "data": ["[]"]}]},
            "inputs[0].data[0]",
        ),
        (
            "rows of different numbers",
            {"inputs": [BY_FIELD[0], {**BY_FIELD[1], "shape": [1], "data": ["i"]}]},
            "inputs[1].shape",
        ),
    ):
        yield f"tensors: {name}", V2, body, {}, 400, field


def binary_cases() -> Iterator[Case]:
    good = pack("BYTES", ["i1", "i2"])
    for name, (body, headers), field in (
        ("more announced than sent", binary(len(good) + 1, good), "inputs[1].parameters"),
        ("a negative size", binary(-1, good), "inputs[1].parameters"),
        ("a size of 2^80", binary(1 << 80, good), ""),
        ("a size that is text", binary("12", good), "inputs[1].parameters"),
        ("a tail of nobody", binary(len(good), good + b"x"), "inputs"),
        ("an element of 4 GB", binary(len(good), struct.pack("<I", 2**32 - 1) + good[4:]), "inputs[1]"),
        ("too few elements", binary(len(good), good, [3]), "inputs[1]"),
        ("no UTF-8", binary(5, struct.pack("<I", 1) + b"\xff", [1]), "inputs[1]"),
        ("a header beyond the body", binary(len(good), good, header="999999"), HEADER),
        ("a header that is negative", binary(len(good), good, header="-1"), HEADER),
        ("a header of 5,000 digits", binary(len(good), good, header="1" * 5000), HEADER),
        ("a v1 body with a tail", (RAW + b"tail", {HEADER: str(len(RAW))}), "body"),
    ):
        yield f"binary: {name}", V2, body, headers, 400, field


def header_cases() -> Iterator[Case]:
    for coding in ("gzip", "deflate", "br", "zstd", "gzip, identity", "x-nothing"):
        bomb = gzip.compress(b" " * (50 << 20))
        yield f"headers: a bomb in {coding}", V1, bomb, {"Content-Encoding": coding}, 415, "content-encoding"
    for text in ("abc", "nan", "inf", "1e400", "0x10", "1 2", "--1", "1_0", "1e10", "²"):
        yield (
            f"headers: a deadline of {text}",
            V1,
            RAW,
            {"X-Deadline-Ms": text.encode().decode("latin-1")},
            400,
            "x-deadline-ms",
        )
    for text in ("0", "-0", "-5", "0.0", "-1e3", "1e-9"):
        yield f"headers: no time left ({text})", V1, RAW, {"X-Deadline-Ms": text}, 503, ""
    for kind in (
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "Multipart/Form-Data; boundary=x",
    ):
        for body in (b"a&" * 20_000, b"body=%7B%7D&data=x", b"--x\r\n" * 5_000, RAW):
            yield f"forms: {kind}, {body[:6]!r}", V1, body, {"Content-Type": kind}, 400, "body"
    yield "sizes: too large", V1, b" " * (LARGEST + 1), {}, 413, "body"
    yield (
        "sizes: a million candidates",
        V1,
        b'{"instances":[{"candidates":[' + b'"i",' * 50_000 + b'"i"]}]}',
        {},
        413,
        "body",
    )


CASES = [*json_cases(), *value_cases(), *tensor_cases(), *binary_cases(), *header_cases()]


@pytest.fixture(scope="module")
def harmless(servers: Servers) -> Reply:
    return both(servers, V1, GOOD)


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_an_attack_is_refused_alike_and_harms_nobody(servers: Servers, harmless: Reply, case: Case) -> None:
    _, path, body, headers, status, field = case
    reply = both(servers, path, body, {"X-Request-Id": "attack", **headers})
    assert reply.status == status, reply.body
    assert set(reply.json) == {"error", "field"} and reply.json["error"]
    assert reply.json["field"].lower().startswith(field.lower()), reply.json
    assert len(reply.body) < 1000, "an error does not send back what came"
    assert ("retry-after" in reply.headers) == (status == 503)
    assert both(servers, V1, GOOD).body == harmless.body, "others get what they got before"


#: Texts that some program might act on: to us they are ids that the store does not know.
INJECTIONS = [
    "${jndi:ldap://127.0.0.1:1/x}",
    "' OR 1=1 --",
    "\r\nFLUSHALL\r\n",
    "*1\r\n$8\r\nFLUSHALL\r\n",
    "../../etc/passwd",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "\x00",
    "\x1b]0;x\x07",
    "\u202e",
    "İ",
    "a" * 1000,
    "",
]


@pytest.mark.parametrize("text", INJECTIONS, ids=[ascii(text)[:20] for text in INJECTIONS])
def test_texts_that_somebody_might_act_on_are_ids(servers: Servers, harmless: Reply, text: str) -> None:
    for body in (one(user_id=text), one(candidates=["i1", text])):
        reply = both(servers, V1, body)
        if reply.status == 200:
            items = reply.json["predictions"][0]["items"]
            assert {item["item_id"] for item in items} == set(body["instances"][0]["candidates"])
        else:
            assert (reply.status, set(reply.json)) == (400, {"error", "field"})
    assert both(servers, V1, GOOD).body == harmless.body
    for log in servers.log.values():
        written = log.read_text()
        assert not text.strip() or text == "İ" or text not in written, "a log line contains what a caller sent"
        assert "\x1b" not in written


def test_hostile_headers_reach_no_log_and_no_answer(servers: Servers) -> None:
    """Request ids of other characters than a log may hold are replaced."""
    for name, url in servers.url.items():
        for value in ("a\tb", "\x80\xff", "x" * 129, "${jndi:ldap://127.0.0.1:1/y}" * 5):
            reply = ask(
                url, V1, GOOD, {"X-Request-Id": value, "traceparent": value, "X-Request-Start": value, "Accept": value}
            )
            assert reply.status == 200, (name, reply)
            assert reply.headers["x-ctr-request-id"] != value
        assert "jndi:ldap" not in servers.log[name].read_text()


def test_attacks_left_no_stack_trace_and_no_new_process(servers: Servers) -> None:
    for name, log in servers.log.items():
        written = log.read_text()
        assert "Traceback" not in written and "prediction failed" not in written, name
        assert "another is started" not in written and "Backend worker error" not in written, name
