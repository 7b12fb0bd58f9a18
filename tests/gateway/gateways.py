"""Gateways for tests: a real Envoy in a temporary folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.binary import find_envoy
from serving.gateway.file import Declared, GatewayFile
from serving.gateway.process import Gateway, running
from serving.local.processes import free_ports
from thinktwice.errors import ServerError
from thinktwice.experiment.bootstrap import ACCESS_LOG
from thinktwice.experiment.file import CONTROL, ExperimentFile
from thinktwice.experiment.gateway_config import Endpoint
from thinktwice.experiment.routes import cluster_of


def need_envoy() -> None:
    """Skip where there is no Envoy, with its reason."""
    try:
        find_envoy()
    except ServerError as error:
        pytest.skip(str(error))


def declare(ports: Mapping[str, int], experiments: Sequence[ExperimentFile] = (), **fields: Any) -> Declared:
    """A gateway on a free port, with one replica an arm on these ports of loopback. It is patient: the machine may be busy."""
    fields = {"per_try_timeout": 5, "timeout": 20, **fields}
    secret = fields.pop("secret", None)
    port = fields.pop("port", None) or free_ports(1)[0]
    arms = {name: [f"127.0.0.1:{found}"] for name, found in ports.items()}
    file = GatewayFile.model_validate({"version": 1, "listen": f"127.0.0.1:{port}", "arms": arms, **fields})
    endpoints = {
        name if name == CONTROL else cluster_of(*name.split("/")): [Endpoint(host="127.0.0.1", port=found)]
        for name, found in ports.items()
    }
    return Declared(file, list(experiments), endpoints, secret)


@contextmanager
def gateway(folder: Path, declared: Declared) -> Iterator[Gateway]:
    """The gateway while the block runs."""
    need_envoy()
    with running(declared, folder) as found:
        yield found


def log_lines(found: Gateway, request_ids: set[str], limit: float = 10.0) -> list[dict[str, Any]]:
    """Lines of the access log, once all these requests are in it."""
    end = time.monotonic() + limit
    while True:
        texts = [path.read_bytes() for path in sorted(found.folder.glob("access*.log"))]
        lines = [
            json.loads(line)
            for text in texts
            for line in text.decode("latin-1").splitlines(keepends=True)
            if line.endswith("\n")
        ]
        missing = request_ids - {line["request_id"] for line in lines}
        if not missing:
            return lines
        assert time.monotonic() < end, f"{len(missing)} requests are not in the log"
        time.sleep(0.05)


__all__ = ["ACCESS_LOG", "declare", "gateway", "log_lines", "need_envoy"]
