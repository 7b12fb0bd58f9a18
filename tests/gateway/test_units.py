"""Who gets which arm at a running gateway: exactly what the pure function says, for every id that a client can send."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.access_log import access_logs, count_lines
from serving.gateway.process import Gateway
from tests.experiment.files import experiment, repeatable, units
from tests.gateway.gateways import declare, gateway, log_lines, need_envoy
from tests.gateway.upstreams import Upstream, upstreams
from thinktwice.experiment.assignment import assign, layout_of

pytestmark = pytest.mark.server

FILE = experiment("exp1", coverage=0.5, testers={"t1": ["tester-1"]})
LAYOUT = layout_of([FILE])
UNIT = b"X-Experiment-Unit"

#: Everything that HTTP lets into a header: no control characters but the tab.
field_bytes = st.binary(max_size=300).map(lambda b: bytes(c for c in b if (c >= 32 and c != 127) or c == 9))


@pytest.fixture(scope="module")
def arms() -> Iterator[list[Upstream]]:
    need_envoy()
    with upstreams("control", "t1", names_itself=False) as found:
        yield found


@pytest.fixture(scope="module")
def live(arms: list[Upstream], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    ports = {"control": arms[0].port, "exp1/t1": arms[1].port}
    declared = declare(ports, [FILE], secret="a-secret-of-twenty-one")
    with gateway(tmp_path_factory.mktemp("gateway"), declared) as found:
        yield found


def ask(live: Gateway, *headers: tuple[bytes, bytes]) -> tuple[int, str, dict[str, str]]:
    """Status, request id and headers of the answer to one request with these headers as they are."""
    request = str(uuid.uuid4())
    lines = [b"POST /v1/models/ctr:predict HTTP/1.1", b"host: h", b"connection: close", b"content-length: 2"]
    lines += [b"content-type: application/json", b"x-request-id: " + request.encode()]
    lines += [name + b": " + value for name, value in headers]
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(b"\r\n".join([*lines, b"", b"{}"]))
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    head, _, _ = answer.partition(b"\r\n\r\n")
    fields = dict(line.decode("latin-1").lower().split(": ", 1) for line in head.split(b"\r\n")[1:])
    return int(head.split(b" ", 2)[1]), request, fields


def check(live: Gateway, asked: dict[str, str | None]) -> None:
    """The log has every request with the arm, enrolment and experiment of its unit."""
    lines = {line["request_id"]: line for line in log_lines(live, set(asked))}
    for request, unit in asked.items():
        want, line = assign(LAYOUT, unit), lines[request]
        seen = (line["experiment"], line["assigned"], line["enrolled"], line["served"], line["code"])
        assert seen == (want.experiment, want.arm, "1" if want.enrolled else "0", want.arm, 200), repr(unit)


@settings(repeatable, max_examples=30)
@given(st.lists(st.one_of(units.map(str.encode), field_bytes), min_size=5, max_size=20))
def test_any_id(live: Gateway, asked: Sequence[bytes]) -> None:
    sent: dict[str, str | None] = {}
    for unit in asked:
        status, request, _ = ask(live, (UNIT, unit))
        assert status == 200
        sent[request] = unit.decode("latin-1")
    check(live, sent)


@pytest.mark.parametrize(
    ("headers", "unit", "route"),
    [
        ([], None, "no-unit"),
        ([(UNIT, b"")], None, "no-unit"),
        ([(UNIT, b" \t ")], None, "no-unit"),
        ([(UNIT, "ünit".encode())], "ünit", "bad-unit"),
        ([(UNIT, b"\xff\xfe")], "\xff\xfe", "bad-unit"),
        ([(UNIT, b"u" * 8192)], "u" * 8192, "bad-unit"),
        ([(UNIT, b"a,b")], "a,b", "bad-unit"),
        ([(UNIT, b"first"), (UNIT, b"second")], "first", "split"),
        ([(UNIT, b"second"), (b"x-experiment-unit", b"first")], "second", "split"),
        ([(UNIT, b"tester-1")], "tester-1", "testers-exp1_t1-0"),
    ],
    ids=[
        "missing",
        "empty",
        "blank",
        "not ASCII",
        "not UTF-8",
        "8 KB",
        "comma",
        "doubled",
        "doubled in another case",
        "tester",
    ],
)
def test_an_odd_unit_gets_control_and_is_counted(
    live: Gateway, headers: list[tuple[bytes, bytes]], unit: str | None, route: str
) -> None:
    before = count_lines(access_logs(live.folder)).by_route.get(route, 0)
    status, request, _ = ask(live, *headers)
    assert status == 200
    check(live, {request: unit})
    assert count_lines(access_logs(live.folder)).by_route[route] == before + 1


def test_a_client_can_neither_choose_an_arm_nor_steer_the_proxy(live: Gateway, arms: list[Upstream]) -> None:
    forged = [
        (b"X-Arm", b"t1"),
        (b"x-arm", b"t1"),
        (b"x-enrolled", b"1"),
        (b"X-EXPERIMENT", b"exp1"),
        (b"x-ab-unit", b"u1"),
        (b"x-bucket", b"1"),
        (b"x-ab-salt", b"mine"),
        (b"X-Ab-Host", b"h-shadow"),
        (b"x-force-arm", b"exp1_t1:wrong"),
        (b"x-envoy-max-retries", b"100"),
        (b"X-Envoy-Retry-On", b"5xx"),
        (b"x-envoy-upstream-rq-timeout-ms", b"1"),
        (b"x-envoy-attempt-count", b"7"),
        (b"x-envoy-original-path", b"/admin"),
        (b"x-request-start", b"t=1"),
        (b"x-gateway-probe", b"guess"),
    ]
    status, request, _ = ask(live, *forged)
    assert status == 200
    check(live, {request: None})
    head = next(h for h in reversed(arms[0].heads) if request.encode() in h).lower()
    fields = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line]
    found = {name: [value for key, value in fields if key == name] for name, _ in fields}
    assert found[b"x-arm"] == [b"control"] and found[b"x-enrolled"] == [b"0"] and found[b"x-experiment"] == [b"none"]
    assert b"x-ab-unit" not in found and b"x-bucket" not in found
    assert found[b"x-ab-salt"] == [FILE.salt.encode()] and found[b"x-ab-host"] == found[b"host"] == [b"h"]
    assert found[b"x-envoy-attempt-count"] == [b"1"] and b"x-envoy-max-retries" not in found
    assert b"x-envoy-original-path" not in found and b"x-envoy-upstream-rq-timeout-ms" not in found
    (start,) = found[b"x-request-start"]
    assert start.startswith(b"t=") and float(start[2:]) > 1.6e9
    _, request, _ = ask(live, (b"x-force-arm", b"exp1_t1:a-secret-of-twenty-one"))
    (line,) = [line for line in log_lines(live, {request}) if line["request_id"] == request]
    assert (line["experiment"], line["assigned"], line["enrolled"], line["served"]) == ("override", "t1", "0", "t1")
    assert not any(b"a-secret-of" in head for head in arms[1].heads), "the secret stays at the gateway"


@pytest.mark.parametrize(
    "given", [b"abc-1", b"00000000-0000-4000-8000-000000000001", b"a b~", b"a" * 128, b"a\r\nx-request-id: b"]
)
def test_a_request_id_is_kept_and_returned(live: Gateway, arms: list[Upstream], given: bytes) -> None:
    """One that is sent twice becomes one of both."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/models/ctr:predict HTTP/1.1\r\nhost: h\r\nconnection: close\r\nx-request-id: %s\r\n"
            b"content-length: 2\r\n\r\n{}" % given
        )
        answer = connection.recv(1 << 16)
    given = given.replace(b"\r\nx-request-id: ", b",")
    assert b"\r\nx-request-id: " + given + b"\r\n" in answer
    assert b"x-request-id: " + given + b"\r\n" in arms[0].heads[-1]
    assert given.decode() in {line["request_id"] for line in log_lines(live, {given.decode()})}


def test_a_request_without_an_id_gets_one(live: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/models/ctr:predict HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
        )
        fields = connection.recv(1 << 16).decode().split("\r\n")
    (found,) = [line.split(": ")[1] for line in fields if line.startswith("x-request-id")]
    assert str(uuid.UUID(found)) == found
    assert log_lines(live, {found})


def test_no_person_is_in_the_log(live: Gateway) -> None:
    _, request, _ = ask(live, (UNIT, b"somebody-private"), (b"cookie", b"private=1"), (b"user-agent", b"private"))
    log_lines(live, {request})
    assert all(b"private" not in path.read_bytes() for path in access_logs(live.folder))
    (line,) = [line for line in log_lines(live, {request}) if line["request_id"] == request]
    assert json.loads(json.dumps(line)) == line
