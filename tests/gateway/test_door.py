"""The door of a real gateway: TLS from files, client certificates, bearer tokens, rate limits."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.binary import find_envoy
from serving.gateway.file import load_gateway
from serving.gateway.process import Gateway, probe_token
from serving.gateway.reload import plan, reload
from tests.contract.test_contract import V1
from tests.experiment.files import experiment, repeatable
from tests.experiment.test_route_check import FILE, HERE
from tests.gateway.certificates import Authority
from tests.gateway.gateways import declare, gateway, log_lines, need_envoy
from tests.gateway.upstreams import Upstream, upstreams
from thinktwice.client import Client
from thinktwice.errors import ExperimentError, RequestError, ServerError
from thinktwice.experiment.bootstrap import bootstrap
from thinktwice.experiment.gateway_config import GatewayConfig
from thinktwice.experiment.route_check import check_routes
from thinktwice.experiment.routes import CLUSTERS, ROUTES, render

server = pytest.mark.server
OLD, NEW = "an-old-token-of-twenty-one", "a-new-token-of-twenty-one"
EVENT = {"user_id": "u", "candidates": ["i1"]}


@pytest.fixture(scope="module")
def arm() -> Iterator[Upstream]:
    need_envoy()
    with upstreams("control") as (found,):
        yield found


def trusting(authority: Path, *certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority))
    if certificate:
        context.load_cert_chain(*map(str, certificate))
    return context


def served_serial(port: int, context: ssl.SSLContext) -> str:
    with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:  # fmt: skip
        found = wrapped.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


def post(live: Gateway, **headers: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)) as connection:
        connection.request("POST", V1, b"{}", {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(answer.read() or b"{}")


@server
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_from_files_that_are_read_again(arm: Upstream, tmp_path: Path) -> None:
    authority = Authority.new("ca")
    trusted = authority.write(tmp_path / "ca.pem")
    certificate, key = authority.issue(tmp_path / "tls", "server")
    file = experiment("exp1", arms=3, coverage=0.5)
    with upstreams("t1", "t2") as (t1, t2):
        ports = {"control": arm.port, "exp1/t1": t1.port, "exp1/t2": t2.port}
        declared = declare(ports, [file], tls={"certificate": str(certificate), "key": str(key)})
        with gateway(tmp_path / "gateway", declared) as live:
            assert {probe.arm for probe in live.probes} == {"control", "t1", "t2"}, "every arm was asked over a socket"
            assert (live.folder / "probe.sock").stat().st_mode & 0o077 == 0
            context = trusting(trusted)
            with Client(f"https://127.0.0.1:{live.port}", tls=context) as client:
                assert client.predict(EVENT).served_arm == "control"
                with pytest.raises(ServerError, match="CERTIFICATE_VERIFY_FAILED"):
                    Client(f"https://127.0.0.1:{live.port}").predict(EVENT)
                with pytest.raises(ServerError):
                    Client(f"http://127.0.0.1:{live.port}").predict(EVENT)
                old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
                old.maximum_version = ssl.TLSVersion.TLSv1_1
                with pytest.raises(OSError):
                    served_serial(live.port, old)
                before = served_serial(live.port, context)
                authority.issue(tmp_path / "tls", "server")  # renewed in place
                end = time.monotonic() + 20
                while served_serial(live.port, context) == before:
                    assert time.monotonic() < end, "the new certificate is not used"
                    time.sleep(0.1)
                grown = declare(
                    ports, [file.model_copy(update={"coverage": 1.0})], tls=declared.file.tls, port=live.port
                )
                token = probe_token(grown, live.folder)
                assert len(reload(grown, live.folder, find_envoy(), live.admin, token).probes) == 4
                reply = client.predict(EVENT)
                assert reply.served_arm == "control"
            lines = log_lines(live, {reply.request_id})
            assert not [line for line in lines if line["request_id"].startswith("gateway-probe")]
            moved = declare(ports, [file], tls={"certificate": str(certificate), "key": str(key), "client_ca": str(trusted)}, port=live.port)  # fmt: skip
            with pytest.raises(ServerError, match=r"other settings .* TLS"):
                probe_token(moved, live.folder)


@server
def test_a_client_needs_a_certificate_of_the_authority(arm: Upstream, tmp_path: Path) -> None:
    authority, stranger = Authority.new("ca"), Authority.new("stranger")
    trusted = authority.write(tmp_path / "ca.pem")
    certificate, key = authority.issue(tmp_path / "tls", "server")
    good, bad = authority.issue(tmp_path / "c", "good", "client"), stranger.issue(tmp_path / "c", "bad", "client")
    tls = {"certificate": str(certificate), "key": str(key), "client_ca": str(trusted)}
    with gateway(tmp_path / "gateway", declare({"control": arm.port}, tls=tls)) as live:
        url = f"https://127.0.0.1:{live.port}"
        with Client(url, tls=trusting(trusted, *good)) as client:
            assert client.predict(EVENT).served_arm == "control"
        seen = len(arm.heads)
        for context in (trusting(trusted), trusting(trusted, *bad)):
            with pytest.raises(ServerError), Client(url, tls=context) as client:
                client.predict(EVENT)
        assert len(arm.heads) == seen
        head = arm.heads[-1].lower()
        assert b"x-forwarded-client-cert" not in head


@server
def test_a_prediction_needs_a_token_and_no_arm_sees_it(arm: Upstream, tmp_path: Path) -> None:
    declared = replace(declare({"control": arm.port}, token_file="tokens"), tokens=(OLD, NEW))
    with gateway(tmp_path / "gateway", declared) as live:
        url = f"http://127.0.0.1:{live.port}"
        for token in (OLD, NEW):
            with Client(url, token=token) as client:
                assert client.predict(EVENT).served_arm == "control"
            assert b"authorization" not in arm.heads[-1].lower() and token.encode() not in arm.heads[-1]
        seen = len(arm.heads)
        for headers in ({}, {"authorization": "Bearer"}, {"authorization": f"Bearer {OLD}x"}, {"authorization": f"Basic {OLD}"}, {"authorization": OLD}, {"x-api-key": OLD}):  # fmt: skip
            status, answered, content = post(live, **headers)
            assert status == 401 and answered["www-authenticate"] == "Bearer" and content["field"] == "authorization"
        assert len(arm.heads) == seen
        with pytest.raises(RequestError, match="send a bearer token"), Client(url) as client:
            client.predict(EVENT)
        with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)) as connection:
            connection.request("GET", "/v2/health/live")
            assert connection.getresponse().status == 200, "health needs no token"
        kept = replace(declared, tokens=(NEW,))
        reload(kept, live.folder, find_envoy(), live.admin, probe_token(kept, live.folder))
        assert post(live, authorization=f"Bearer {OLD}")[0] == 401
        assert post(live, authorization=f"Bearer {NEW}")[0] == 200
        assert (live.folder / ROUTES).stat().st_mode & 0o077 == 0
        assert OLD not in (live.folder / "access.log").read_text()


@server
@pytest.mark.parametrize("what", ["rate_limit", "connection_rate_limit"])
def test_more_requests_than_the_limit_are_refused(arm: Upstream, tmp_path: Path, what: str) -> None:
    limit = {"requests_per_second": 1, "burst": 5}
    declared = declare({"control": arm.port}, **{what: limit})
    with gateway(tmp_path / "gateway", declared) as live:
        url = f"http://127.0.0.1:{live.port}"
        answers = []
        with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)) as connection:
            for _ in range(60):  # one more passes for every second that this takes
                connection.request("POST", V1, b"{}", {"content-type": "application/json"})
                answer = connection.getresponse()
                answers.append((answer.status, answer.getheader("retry-after"), answer.read()))
        limited = [one for one in answers if one[0] == 429]
        assert len(limited) >= 20 and len(answers) - len(limited) >= 5, "on one connection, which stays open"
        assert all(after == "1" and b"too many requests" in body for _, after, body in limited)
        refused = len(limited)
        with Client(url) as client:
            with Client(url) as other:  # a connection of its own has a budget of its own
                if what == "connection_rate_limit":
                    assert other.predict(EVENT).served_arm == "control"
            with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)) as connection:
                for _ in range(20):
                    connection.request("GET", "/v2/health/ready")
                    answer = connection.getresponse()
                    answer.read()
                    assert answer.status != 429, "health has no limit"
            patient = declare({"control": arm.port}, per_try_timeout=4, port=live.port, **{what: limit})
            reload(patient, live.folder, find_envoy(), live.admin, probe_token(patient, live.folder))
            time.sleep(1.5)
            reply = client.predict(EVENT)
        codes = [line["code"] for line in log_lines(live, {reply.request_id})]
        assert codes.count(429) == refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tls: {certificate: a.pem}\n", "tls.key"),
        ("tls: {certificate: a/c.pem, key: b/k.pem}\n", "must be in one folder"),
        ("tls: {certificate: c.pem, key: k.pem, ciphers: x}\n", "ciphers"),
        ("rate_limit: {requests_per_second: 0}\n", "rate_limit"),
        ("rate_limit: {requests_per_second: 9, burst: 3}\n", "burst 3 is less than"),
        ("connection_rate_limit: 5\n", "connection_rate_limit"),
        ("token_file: no\n", "token file .* cannot be read"),
        ("token_file: empty\n", "is empty: write one token a line"),
        ("token_file: short\n", "token 2 of .* must be 16 to 200"),
        ("token_file: spaced\n", "token 1 of .* must be 16 to 200"),
        ("token_file: many\n", "has 21 tokens, at most 20"),
    ],
)
def test_a_door_that_is_declared_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "gateway.yaml").write_text("version: 1\narms:\n  control: [127.0.0.1:8081]\n" + text)
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "short").write_text(f"{OLD}\nsecret\n")
    (tmp_path / "spaced").write_text("a token with spaces\n")
    (tmp_path / "many").write_text("".join(f"{OLD}-{n}\n" for n in range(21)))
    with pytest.raises(ServerError, match=words) as caught:
        load_gateway(tmp_path / "gateway.yaml")
    assert OLD not in str(caught.value) and "secret\n" not in str(caught.value)


def test_files_beside_the_gateway_file(tmp_path: Path) -> None:
    text = (
        "version: 1\narms: {control: ['127.0.0.1:1']}\ntoken_file: t\ntls: {certificate: tls/c.pem, key: tls/k.pem}\n"
    )
    (tmp_path / "gateway.yaml").write_text(text)
    (tmp_path / "t").write_text(f"\n{OLD}\r\n{NEW}\n{OLD}\n")
    declared = load_gateway(tmp_path / "gateway.yaml")
    assert declared.tokens == (OLD, NEW)
    assert declared.file.tls is not None and declared.file.tls.key == str(tmp_path.resolve() / "tls" / "k.pem")
    plan(declared, tmp_path / "none", None)  # rendered for another machine: the files need not be here
    need_envoy()
    with pytest.raises(ServerError, match=r"tls\.certificate .*c\.pem cannot be read"):
        plan(declared, tmp_path / "none", find_envoy())


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    need_envoy()
    authority = Authority.new("ca")
    certificate, _ = authority.issue(tmp_path, "one")
    _, key = authority.issue(tmp_path, "two")
    declared = declare({"control": 1}, tls={"certificate": str(certificate), "key": str(key)})
    with pytest.raises(ExperimentError, match="Envoy refuses the rendered files"):
        plan(declared, tmp_path / "none", find_envoy())
    key.write_text("no key")
    with pytest.raises(ExperimentError, match="Envoy refuses the rendered files"):
        plan(declared, tmp_path / "none", find_envoy())


def test_without_settings_the_door_is_as_before() -> None:
    text = json.dumps(bootstrap(GatewayConfig(), probe="x" * 20))
    for word in ("transport_socket", "local_ratelimit", "probe.sock", "401", "429"):
        assert word not in text


TOKENS = st.lists(st.from_regex(r"[A-Za-z0-9._~+/=-]{16,40}", fullmatch=True), min_size=1, max_size=4, unique=True)


@repeatable
@given(TOKENS, TOKENS)
def test_routes_accept_the_declared_tokens_alone(tokens: list[str], others: list[str]) -> None:
    arms = {"control": HERE, "exp1_t1": HERE, "exp1_t2": HERE}
    files = dict(render([FILE], arms, GatewayConfig(), 1, None, tokens).files())
    check_routes(files[ROUTES], files[CLUSTERS], [FILE], None, tokens)
    for declared in (others, [], [*tokens, "one-more-of-twenty-one"]):
        if declared != tokens:
            with pytest.raises(ExperimentError, match="other bearer tokens"):
                check_routes(files[ROUTES], files[CLUSTERS], [FILE], None, declared)
    content = json.loads(files[ROUTES])
    del content["resources"][0]["request_headers_to_remove"]
    with pytest.raises(ExperimentError, match="must not reach an arm"):
        check_routes(json.dumps(content).encode(), files[CLUSTERS], [FILE], None, tokens)
    routes = content["resources"][0]["virtual_hosts"][0]["routes"]
    for name in ("ingress-token", "ingress-token-known"):
        left = [route for route in routes if route["name"] != name]
        content["resources"][0]["virtual_hosts"][0]["routes"] = left
        with pytest.raises(ExperimentError):
            check_routes(json.dumps(content).encode(), files[CLUSTERS], [FILE], None, tokens)
