"""Two real model servers as the arms of an experiment, behind a real gateway."""

from __future__ import annotations

import time
import urllib.parse
from pathlib import Path

import pytest

from serving.gateway.access_log import access_logs, count_lines
from tests.contract.conftest import Servers
from tests.contract.test_contract import ONE, V1, V2, ask
from tests.experiment.files import experiment
from tests.gateway.gateways import declare, gateway, log_lines
from thinktwice.client import Client
from thinktwice.errors import RequestError
from thinktwice.experiment.assignment import assign, layout_of

pytestmark = pytest.mark.server


def test_lists_and_health_are_those_of_the_kserve_predictor(servers: Servers, tmp_path: Path) -> None:
    """TorchServe behind the gateway: a caller sees no difference."""
    port = urllib.parse.urlsplit(servers.url["torchserve"]).port or 0
    with gateway(tmp_path, declare({"control": port})) as live:
        end = time.monotonic() + 30
        while ask(live.url, "/v2/health/ready", None, method="GET").status != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        paths = ("/", "/v1/models", "/v1/models/ctr", "/v2", "/v2/health/live", "/v2/health/ready")
        for path in (*paths, "/v2/models/ctr", "/v2/models/ctr/ready"):
            through, kserve = (ask(url, path, None, method="GET") for url in (live.url, servers.url["kserve"]))
            assert (through.status, through.json) == (kserve.status, kserve.json), path
        for method, path in (
            ("GET", V1),
            ("PUT", V2),
            ("GET", "/v2/models/other/ready"),
            ("POST", "/v1/models/other:predict"),
        ):
            through, kserve = (ask(url, path, None, method=method) for url in (live.url, servers.url["kserve"]))
            assert (through.status, through.json["field"]) == (kserve.status, kserve.json["field"]), path
            assert through.headers.get("allow") == kserve.headers.get("allow")


def test_users_get_their_arm_and_the_same_answers_as_without_a_gateway(servers: Servers, tmp_path: Path) -> None:
    file = experiment("exp1", coverage=1.0)
    layout = layout_of([file])
    ports = {
        arm: urllib.parse.urlsplit(servers.url[name]).port or 0
        for arm, name in (("control", "torchserve"), ("exp1/t1", "kserve"))
    }
    direct = ask(servers.url["torchserve"], V1, {"instances": [ONE]}).json["predictions"]
    ids = {}
    with gateway(tmp_path, declare(ports, [file])) as live, Client(live.url) as client:
        for number in range(12):
            reply = client.predict(ONE, unit=f"u{number}", deadline_ms=5000)
            assert reply.predictions == direct
            ids[reply.request_id] = f"u{number}"
        with pytest.raises(RequestError, match="candidates"):
            client.predict({"user_id": "u", "candidates": []}, unit="u0")
        lines = {line["request_id"]: line for line in log_lines(live, set(ids)) if line["request_id"] in ids}
        counts = count_lines(access_logs(live.folder))
    for request, unit in ids.items():
        arm = assign(layout, unit).arm
        assert (lines[request]["assigned"], lines[request]["upstream"], lines[request]["code"]) == (arm, arm, 200)
        assert lines[request]["served"] == "control", "both servers were told that they are control"
    # A server that is deployed under another arm's name is found.
    assert counts.misnamed == sum(assign(layout, unit).arm == "t1" for unit in ids.values()) > 0
