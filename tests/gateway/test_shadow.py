"""What a real Envoy sends to a shadow: a predictor knows the copy by its host, whatever host the caller named."""

from __future__ import annotations

import socket
import time
import uuid
from pathlib import Path

import pytest

from serving.telemetry.exposures import ExposureHeaders, is_shadow
from tests.experiment.files import experiment
from tests.gateway.gateways import declare, gateway, need_envoy
from tests.gateway.upstreams import Upstream, upstreams

pytestmark = pytest.mark.server
HOSTS = ("shop", "shop:8080", "my-shadow", "my-shadow:80", "127.0.0.1:8080", "[::1]:8080")


def headers_of(arm: Upstream, request: str) -> list[dict[str, str]]:
    found = [head.decode() for head in arm.heads if request.encode() in head]
    return [dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line) for head in found]


def test_a_copy_is_known_by_its_host(tmp_path: Path) -> None:
    need_envoy()
    file = experiment("exp1", coverage=0.0)
    with upstreams("control", "t1") as (control, treatment):
        ports = {"control": control.port, "exp1/t1": treatment.port}
        with gateway(tmp_path, declare(ports, [file], shadow=["exp1/t1"])) as live:
            for host in HOSTS:
                request = str(uuid.uuid4())
                with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
                    connection.sendall(
                        f"POST /v1/models/ctr:predict HTTP/1.1\r\nhost: {host}\r\nx-request-id: {request}\r\n"
                        "x-experiment-unit: u1\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}".encode()
                    )
                    while connection.recv(1 << 16):
                        pass
                end = time.monotonic() + 20
                while not (copies := headers_of(treatment, request)):
                    assert time.monotonic() < end, f"no copy of the request to {host}"
                    time.sleep(0.05)
                (original,) = headers_of(control, request)
                assert [is_shadow(copy) for copy in copies] == [True], (host, copies[0]["host"])
                assert not is_shadow(original), host
                ignored: list[str] = []
                seen = ExposureHeaders("raw", ignored.append).exposure(copies[0])
                assert seen.shadow and seen.enrolled is False and seen.experiment == "exp1" and not ignored
