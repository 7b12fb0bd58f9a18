"""Probe requests of the gateway: check that every arm gets the users that the assignment function gives it.

A probe carries a unit of a known arm and a body that every predictor refuses at once, so nothing is scored and no prediction is
logged. Its route is read from a separate log; probes are not in the logs of the experiment.
"""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from serving.gateway.admin import connected
from serving.gateway.file import Declared
from thinktwice.errors import ExperimentError, ServerError
from thinktwice.experiment.assignment import NO_EXPERIMENT, assign, layout_of
from thinktwice.experiment.bootstrap import PROBE_HEADER, PROBE_LOG
from thinktwice.experiment.door import AUTHORIZATION, PROBE_SOCKET, bearers, is_guarded
from thinktwice.experiment.file import CONTROL
from thinktwice.experiment.gateway_config import Endpoint
from thinktwice.experiment.ingress import predict_paths

LOG_LIMIT = 15.0  # seconds until a line must be in the log; Envoy flushes every second
HANDSHAKE_LIMIT = 10.0  # seconds until the listener must have its certificate
ATTEMPTS = 5  # Envoy's threads get new routes one after another
BODY = b"{}"


@dataclass(frozen=True)
class Probed:
    """One probe.

    Attributes:
        served: arm that answered; differs from ``arm`` if that one does not respond.
    """

    experiment: str
    arm: str
    unit: str | None
    served: str | None


def check_handshake(listen: Endpoint, log: Path) -> None:
    """Check that the listener shows a certificate; whose it is does not matter here.

    Raises:
        ServerError: it does not.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    end = time.monotonic() + HANDSHAKE_LIMIT
    while True:
        try:
            with socket.create_connection((_reached(listen.host), listen.port), HANDSHAKE_LIMIT) as plain:
                context.wrap_socket(plain).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ServerError(f"Envoy shows no certificate ({error}): see {log}") from error
            time.sleep(0.1)


def _reached(host: str) -> str:
    """The address at which this machine reaches a listener."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def probe_arms(declared: Declared, folder: Path, secret: str) -> tuple[Probed, ...]:
    """Send one request per arm that has users, and one without a unit.

    Raises:
        ExperimentError: a request was assigned to another arm than in the experiment file.
        ServerError: the gateway does not respond.
    """
    return tuple(_probe(declared, folder, secret, *target) for target in _wanted(declared))


def _wanted(declared: Declared) -> Iterator[tuple[str, str, str | None]]:
    """Experiment, arm and unit of every probe."""
    yield NO_EXPERIMENT, CONTROL, None
    if not declared.experiments:
        return
    layout = layout_of(declared.experiments)
    for bucket_range in layout.ranges:
        if bucket_range.enrolled:
            units = (f"gateway-probe-{number}" for number in itertools.count())
            assigned = ((unit, assign(layout, unit)) for unit in units)
            unit = next(
                u
                for u, a in assigned
                if (a.experiment, a.arm, a.enrolled) == (bucket_range.experiment, bucket_range.arm, True)
            )
            yield bucket_range.experiment, bucket_range.arm, unit


def _probe(declared: Declared, folder: Path, secret: str, experiment: str, arm: str, unit: str | None) -> Probed:
    actual: tuple[str, str, str, str | None] = ("", "", "", None)
    expected = (experiment, arm, "0" if unit is None else "1")
    for attempt in range(ATTEMPTS):
        time.sleep(0.1 * attempt)
        actual = _line(folder, _ask(declared, folder, secret, unit))
        if actual[:3] == expected:
            return Probed(experiment, arm, unit, actual[3])
    raise ExperimentError(
        f"the gateway puts the unit {unit!r} into {actual[1]!r} of {actual[0]!r} (enrolled {actual[2]}), not {arm!r} of {experiment!r}: "
        "the old routes are live, apply them again"
    )


def _ask(declared: Declared, folder: Path, secret: str, unit: str | None) -> str:
    """Send a probe and return its request id."""
    request_id = f"gateway-probe-{uuid.uuid4()}"
    headers = {"content-type": "application/json", "x-request-id": request_id, PROBE_HEADER: secret}
    if unit is not None:
        headers[declared.file.unit_header] = unit
    if declared.tokens:
        headers[AUTHORIZATION] = bearers(declared.tokens)[0]
    listen = declared.file.listen
    host = _reached(listen.host)
    try:
        with closing(http.client.HTTPConnection(host, listen.port, timeout=declared.file.timeout + 5)) as connection:
            if is_guarded(declared.file):
                connection.sock = connected(folder / PROBE_SOCKET, declared.file.timeout + 5)
            connection.request("POST", predict_paths(declared.file.model)[0], BODY, headers)
            connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"the gateway does not answer at {host}:{listen.port} ({error}): see envoy.log") from error
    return request_id


def _line(folder: Path, request_id: str) -> tuple[str, str, str, str | None]:
    """Experiment, arm, enrolled and serving arm of a probe, from the log."""
    end = time.monotonic() + LOG_LIMIT
    id_bytes = request_id.encode()
    while time.monotonic() < end:
        for line in reversed((folder / PROBE_LOG).read_bytes().splitlines(keepends=True)):
            if id_bytes in line and line.endswith(b"\n"):
                entry = json.loads(line.decode("latin-1"))
                return entry["experiment"], entry["assigned"], entry["enrolled"], entry["served"] or None
        time.sleep(0.05)
    raise ServerError(
        f"a probe is not in {folder / PROBE_LOG} after {LOG_LIMIT:g} s: make room on the disk if it is full, and try again"
    )
