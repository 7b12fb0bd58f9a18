"""Requests of the gateway's own: does every arm get the users that the pure function says? They are in no log of the experiment.

A probe carries a unit of a known arm and a body that every predictor refuses at once, so nothing is scored and no prediction
logged; where it went is read from a log of its own.
"""

from __future__ import annotations

import http.client
import itertools
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from serving.gateway.file import Declared
from thinktwice.errors import ExperimentError, ServerError
from thinktwice.experiment.assignment import NO_EXPERIMENT, assign, layout_of
from thinktwice.experiment.bootstrap import PROBE_HEADER, PROBE_LOG
from thinktwice.experiment.file import CONTROL
from thinktwice.experiment.ingress import predict_paths

LOG_LIMIT = 15.0  # seconds until a line is in the log: Envoy writes every second
ATTEMPTS = 5  # Envoy's threads take new routes one after the other
BODY = b"{}"


@dataclass(frozen=True)
class Probed:
    """One probe.

    Attributes:
        served: arm that answered; another than ``arm`` where that one does not answer.
    """

    experiment: str
    arm: str
    unit: str | None
    served: str | None


def probe_arms(declared: Declared, folder: Path, secret: str) -> tuple[Probed, ...]:
    """Send one request an arm that has users, and one without a unit.

    Raises:
        ExperimentError: a request was assigned to another arm than the experiment file says.
        ServerError: the gateway does not answer.
    """
    return tuple(_probe(declared, folder, secret, *wanted) for wanted in _wanted(declared))


def _wanted(declared: Declared) -> Iterator[tuple[str, str, str | None]]:
    """Experiment, arm and unit of every probe."""
    yield NO_EXPERIMENT, CONTROL, None
    if not declared.experiments:
        return
    layout = layout_of(declared.experiments)
    for part in layout.ranges:
        if part.enrolled:
            units = (f"gateway-probe-{number}" for number in itertools.count())
            found = ((unit, assign(layout, unit)) for unit in units)
            unit = next(u for u, a in found if (a.experiment, a.arm, a.enrolled) == (part.experiment, part.arm, True))
            yield part.experiment, part.arm, unit


def _probe(declared: Declared, folder: Path, secret: str, experiment: str, arm: str, unit: str | None) -> Probed:
    seen: tuple[str, str, str, str | None] = ("", "", "", None)
    expected = (experiment, arm, "0" if unit is None else "1")
    for attempt in range(ATTEMPTS):
        time.sleep(0.1 * attempt)
        seen = _line(folder, _ask(declared, secret, unit))
        if seen[:3] == expected:
            return Probed(experiment, arm, unit, seen[3])
    raise ExperimentError(
        f"the gateway puts the unit {unit!r} into {seen[1]!r} of {seen[0]!r} (enrolled {seen[2]}), not {arm!r} of {experiment!r}: "
        "the old routes are live"
    )


def _ask(declared: Declared, secret: str, unit: str | None) -> str:
    """Send a probe; its request id."""
    request_id = f"gateway-probe-{uuid.uuid4()}"
    headers = {"content-type": "application/json", "x-request-id": request_id, PROBE_HEADER: secret}
    if unit is not None:
        headers[declared.file.unit_header] = unit
    listen = declared.file.listen
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104
    try:
        with closing(http.client.HTTPConnection(host, listen.port, timeout=declared.file.timeout + 5)) as connection:
            connection.request("POST", predict_paths(declared.file.model)[0], BODY, headers)
            connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"the gateway does not answer at {host}:{listen.port} ({error}): see envoy.log") from error
    return request_id


def _line(folder: Path, request_id: str) -> tuple[str, str, str, str | None]:
    """Experiment, arm, enrolled and serving arm of a probe, from the log."""
    end = time.monotonic() + LOG_LIMIT
    mark = request_id.encode()
    while time.monotonic() < end:
        for line in reversed((folder / PROBE_LOG).read_bytes().splitlines(keepends=True)):
            if mark in line and line.endswith(b"\n"):
                found = json.loads(line.decode("latin-1"))
                return found["experiment"], found["assigned"], found["enrolled"], found["served"] or None
        time.sleep(0.05)
    raise ServerError(f"a probe is not in {folder / PROBE_LOG} after {LOG_LIMIT:g} s: is the disk full?")
