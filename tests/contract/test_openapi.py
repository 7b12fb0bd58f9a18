"""The interface is what its document says: what both servers answered validates, and so does what they accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from typer.testing import CliRunner

from serving import cli
from serving.protocol.openapi import MEDIA_TYPE, document
from serving.scorer import EscalatedAnswer
from tests.contract.conftest import Servers
from tests.contract.test_contract import BAD, GOOD, ONE, V1, V2, ask, v2
from tests.serving.small import MODEL_VERSION, PLAIN_SCHEMA, SCHEMA
from thinktwice.release.champion import Champion

pytestmark = pytest.mark.server

DOCUMENT = document(SCHEMA, "ctr", MODEL_VERSION, online=True, answer=EscalatedAnswer)  # the champion has a second look
#: Wrong in a way that a schema cannot tell: sums over parts, texts within texts, sizes in bytes, arithmetic.
BEYOND = {"no JSON", "too large", "numbers too large", "beyond INT8", "a float id"}


def validator(name: str, found: dict[str, Any] = DOCUMENT) -> jsonschema.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": found["components"]}
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def names(path: str, body: Any) -> tuple[str, str]:
    """Schemas of body and answer."""
    v2 = path == V2 and "inputs" in body
    return ("V2Body", "V2Answer") if v2 else ("V1Body", "V1Answer")


@pytest.mark.parametrize(("path", "body"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_good_requests_and_their_answers_validate(servers: Servers, path: str, body: Any) -> None:
    asked, answered = names(path, body)
    assert list(validator(asked).iter_errors(body)) == []
    for url in servers.url.values():
        assert list(validator(answered).iter_errors(ask(url, path, body).json)) == []


@pytest.mark.parametrize(
    ("path", "body"), [b[1:3] for b in BAD if b[0] not in BEYOND], ids=[b[0] for b in BAD if b[0] not in BEYOND]
)
def test_bad_requests_do_not_validate_and_their_errors_do(servers: Servers, path: str, body: Any) -> None:
    asked, _ = names(path, body if isinstance(body, dict) else {})
    assert not validator(asked).is_valid(body)
    for url in servers.url.values():
        reply = ask(url, path, body)
        assert str(reply.status) in DOCUMENT["paths"][V1]["post"]["responses"]
        validator("Error").validate(reply.json)


def test_both_servers_give_the_document(servers: Servers) -> None:
    for url in servers.url.values():
        reply = ask(url, V1, {}, {"Accept": MEDIA_TYPE})
        assert (reply.status, reply.headers["content-type"]) == (200, MEDIA_TYPE)
        assert reply.json == DOCUMENT
    assert ask(servers.url["kserve"], "/openapi.json", None, method="GET").json == DOCUMENT


def test_it_is_a_valid_document_and_always_the_same() -> None:
    validate = pytest.importorskip("openapi_spec_validator").validate
    for found in (DOCUMENT, document(PLAIN_SCHEMA, "ctr", "v", online=False)):
        validate(found)
    again = document(SCHEMA, "ctr", MODEL_VERSION, online=True, answer=EscalatedAnswer)
    assert json.dumps(again) == json.dumps(DOCUMENT)


def test_answers_have_the_headers_of_the_document(servers: Servers) -> None:
    wanted = {"probability": 1, "rank": 1}
    body = {**v2(ONE, outputs=[{"name": name, "parameters": {"binary_data": True}} for name in wanted])}
    late = {**v2({**ONE, "deadline_ms": 0.0001})}
    for url in servers.url.values():
        for sent, status in ((body, "200"), (late, "503"), ({}, "400")):
            reply = ask(url, V2, sent)
            assert str(reply.status) == status
            told = DOCUMENT["paths"][V2]["post"]["responses"][status]
            assert {name.lower() for name in told["headers"]} <= set(reply.headers)
            assert reply.headers["content-type"] in told["content"]
        for path in ("/v2/health/live", "/v2/health/ready"):
            reply = ask(url, path, None, method="GET")
            schema = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.validate(reply.json, schema)


def test_it_follows_the_schema_of_the_log() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert set(schemas["Context"]["properties"]) == {"slot", "bid", "timestamp"}
    row = schemas["Row"]["properties"]
    assert set(row) == {f.name for f in SCHEMA.model_fields_in_order()} | {"timestamp"}
    (cover,) = [one for one in row["cover"]["anyOf"] if one["type"] == "array"]
    assert (cover["minItems"], cover["maxItems"]) == (3, 3)
    plain = document(PLAIN_SCHEMA, "ctr", "v", online=False)
    assert "CandidatesRequest" not in plain["components"]["schemas"]
    assert validator("V1Body", plain).is_valid({"instances": [{"rows": [{"site": "s", "bid": 1}]}]})
    assert not validator("V1Body", plain).is_valid({"instances": [{"user_id": "u", "candidates": ["i"]}]})


def test_the_command(champion: Champion, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(cli.openapi)
    done = CliRunner().invoke(app, ["--bundle", str(champion.bundle_dir)])
    assert json.loads(done.output) == DOCUMENT
    CliRunner().invoke(
        app, ["--bundle", str(champion.bundle_dir), "--out", str(tmp_path / "o.json")], catch_exceptions=False
    )
    assert json.loads((tmp_path / "o.json").read_text()) == DOCUMENT
