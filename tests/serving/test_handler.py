"""The TorchServe handler with a fake context: a batch in, one body each out, and nobody suffers for a neighbour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.adapters.torchserve_handler import CTRHandler
from serving.config import ServingConfig
from serving.protocol import codec_v2
from serving.scorer import EscalatedAnswer, Scorer
from serving.service import Service
from tests.serving.conftest import Lines
from tests.serving.fakes import FakeContext, FakeReader, make_service
from thinktwice.errors import FeatureStoreError

GOOD = {"user_id": "u1", "candidates": ["i1", "i2"], "context": {"slot": "s1", "bid": 0.5, "timestamp": 0}}
V1 = json.dumps({"instances": [GOOD]}).encode()


@pytest.fixture(scope="module")
def handler(small: Path) -> CTRHandler:
    out = CTRHandler()
    # The deadline of a batch counts from its arrival, and these batches are long.
    out._service = make_service(small / "bundle", ServingConfig(shed=False, deadline_ms=600_000))
    return out


def service_of(handler: CTRHandler) -> Service:
    assert handler._service is not None
    return handler._service


def post(handler: CTRHandler, *bodies: Any) -> tuple[FakeContext, list[Any]]:
    context = FakeContext(len(bodies))
    answers = handler.handle([{"body": body} for body in bodies], context)
    assert [headers["content-type"] for headers in context.headers] == ["application/json"] * len(bodies)
    assert all(headers["x-request-id"] for headers in context.headers)
    return context, [json.loads(answer) for answer in answers]


def v2(*requests: Any, **more: Any) -> dict[str, Any]:
    data = [json.dumps(r) for r in requests]
    return {"inputs": [{"name": "request", "shape": [len(data)], "datatype": "BYTES", "data": data}], **more}


def test_v1(handler: CTRHandler) -> None:
    context, (answer,) = post(handler, V1)
    assert context.status == [200]
    (prediction,) = answer["predictions"]
    flags = ["cold_user", "stale_user", "defaulted", "default_features"]
    assert list(prediction) == ["items", *flags, "paths_capped", "model_version", "bundle_hash"]
    assert [item["item_id"] for item in prediction["items"]] == ["i1", "i2"]
    names = ["item_id", "probability", "uncertainty", "num_paths", "rank", "cold", "stale"]
    names += ["base_probability", "reason", "model_version"]
    assert all(list(item) == names for item in prediction["items"])
    assert {item["model_version"] for item in prediction["items"]} == {"small-20260101-abc"}
    assert prediction["paths_capped"] is False


def test_v1_raw_rows(handler: CTRHandler) -> None:
    _, (answer,) = post(handler, json.dumps({"instances": [{"rows": [{}, {"item_id": "i1"}]}]}).encode())
    (prediction,) = answer["predictions"]
    assert [row["row"] for row in prediction["rows"]] == [0, 1]
    assert {row["model_version"] for row in prediction["rows"]} == {prediction["model_version"]}


def test_v2_says_the_same_as_v1(handler: CTRHandler) -> None:
    both = [GOOD, {**GOOD, "candidates": ["i5", "i6", "i7"], "k": 2}]
    _, (first, second) = post(
        handler, json.dumps(v2(*both, id="x1")).encode(), json.dumps({"instances": both}).encode()
    )
    assert (first["id"], first["model_name"], first["model_version"]) == ("x1", "ctr", "small-20260101-abc")
    assert first["parameters"]["model_version"] == "small-20260101-abc"
    assert [f["paths_capped"] for f in json.loads(first["parameters"]["flags"])] == [False, False]
    outputs = {o["name"]: o for o in first["outputs"]}
    assert all(o["shape"] == [4] and len(o["data"]) == 4 for o in outputs.values())
    assert {n: o["datatype"] for n, o in outputs.items()} == {
        name: datatype for name, (datatype, _) in codec_v2.outputs_of(EscalatedAnswer).items()
    }
    assert outputs["request_index"]["data"] == [0, 0, 1, 1]
    flat = [item for prediction in second["predictions"] for item in prediction["items"]]
    for name in ("item_id", "probability", "uncertainty", "num_paths", "rank", "model_version"):
        assert outputs[name]["data"] == [item[name] for item in flat]


def test_v2_gives_the_outputs_asked_for(handler: CTRHandler) -> None:
    _, (answer,) = post(handler, json.dumps(v2(GOOD, outputs=[{"name": "probability"}])).encode())
    assert [o["name"] for o in answer["outputs"]] == ["probability"]


def test_the_same_request_gives_the_same_bytes(handler: CTRHandler, small: Path) -> None:
    again = CTRHandler()
    again._service = make_service(small / "bundle")
    bodies = [{"body": V1}, {"body": json.loads(V1)}, {"data": bytearray(V1)}, {"body": V1.decode()}]
    first = handler.handle(bodies, FakeContext(4))
    assert len(set(first)) == 1
    assert again.handle(bodies[:1], FakeContext(1)) == first[:1]


BAD: list[tuple[Any, str]] = [
    (b"", "body"),
    (b"{", "body"),
    (b"\xff\xfe", "body"),
    (b"null", "body"),
    (b"[]", "body"),
    (b'"x"', "body"),
    (b"[" * 2000, "body"),
    (b'{"instances": [{"user_id": NaN}]}', "body"),
    (b"{}", "instances"),
    (b'{"instances": 1}', "instances"),
    (b'{"instances": [], "parameters": {}}', "parameters"),
    (b'{"instances": [1]}', "instances[0]"),
    (b'{"instances": [{"user_id": "u", "candidates": []}]}', "instances[0].candidates"),
    (b'{"instances": [{"user_id": "u", "candidates": ["a"], "context": {"bid": "x"}}]}', "instances[0].context.bid"),
    (b'{"inputs": []}', "inputs"),
    (b'{"inputs": [1]}', "inputs[0]"),
    (b'{"inputs": 5}', "inputs"),
    ({"inputs": [{"name": "x"}]}, "inputs[0].datatype"),
    ({"inputs": [{"name": "request", "datatype": "FP32", "data": [1.0], "shape": [1]}]}, "inputs[0].datatype"),
    ({"inputs": [{"name": "request", "datatype": "BYTES", "data": "x", "shape": [1]}]}, "inputs[0].data"),
    ({"inputs": [{"name": "request", "datatype": "BYTES", "data": ["{}"], "shape": [2]}]}, "inputs[0].data"),
    ({"inputs": [{"name": "request", "datatype": "BYTES", "data": [1], "shape": [1]}]}, "inputs[0].data[0]"),
    ({"inputs": [{"name": "request", "datatype": "BYTES", "data": ["{"], "shape": [1]}]}, "inputs[0].data[0]"),
    (v2({}), "inputs[0].data[0].user_id"),
    (v2(GOOD, id=3), "id"),
    (v2(GOOD, extra=3), "extra"),
    (v2(GOOD, outputs=3), "outputs"),
    (v2(GOOD, outputs=[{"name": "logit"}]), "outputs[0].name"),
    (v2(GOOD, outputs=[{"name": ["x"]}]), "outputs[0].name"),
]


def test_bad_bodies_get_400_and_the_good_ones_beside_them_their_answer(handler: CTRHandler) -> None:
    bodies = [body for pair in BAD for body in (pair[0], V1)]
    context, answers = post(handler, *bodies)
    good = json.loads(handler.handle([{"body": V1}], FakeContext(1))[0])
    for place, (body, field) in enumerate(BAD):
        assert context.status[2 * place] == 400, body
        assert answers[2 * place]["field"] == field, body
        assert answers[2 * place]["error"]
        assert context.status[2 * place + 1] == 200
        assert answers[2 * place + 1] == good


def test_a_request_without_a_body(handler: CTRHandler) -> None:
    context = FakeContext(1)
    (answer,) = handler.handle([{"a": b"b"}], context)
    assert context.status == [400]
    assert "no JSON body" in json.loads(answer)["error"]


def test_a_dead_store_gives_503_without_internals(handler: CTRHandler) -> None:
    reader = service_of(handler).scorer.reader
    assert isinstance(reader, FakeReader)
    reader.broken = True
    try:
        context, (answer, rows) = post(handler, V1, b'{"instances": [{"rows": [{}]}]}')
    finally:
        reader.broken = False
    assert context.status == [503, 200]
    assert answer == {"error": "the feature store does not answer, try again later", "field": ""}
    assert rows["predictions"]


def test_a_bug_gives_500_without_internals(handler: CTRHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "score", lambda self, *a: 1 / 0)
    context, (answer,) = post(handler, V1)
    assert context.status == [500]
    assert answer == {"error": "prediction failed", "field": ""}


def test_it_loads_the_bundle_of_the_archive_and_says_why_it_cannot(
    small: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    monkeypatch.delenv("THINKTWICE_FEATURE_STORE", raising=False)
    with pytest.raises(FeatureStoreError):
        CTRHandler().initialize(FakeContext(0, small))
    (line,) = lines
    expected = "cannot load: model small-20260101-abc needs the feature service 'ctr_small_20260101_abc'"
    assert line["message"].startswith(expected)
