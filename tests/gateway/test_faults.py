"""A treatment that fails under load harms no caller: control answers, the log says so, and the treatment comes back by itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.access_log import access_logs, count_lines
from serving.gateway.process import Gateway
from tests.experiment.files import experiment
from tests.gateway.gateways import declare, gateway, log_lines, need_envoy
from tests.gateway.load import Load, load
from tests.gateway.upstreams import Mode, Upstream, upstreams
from thinktwice.experiment.assignment import assign, layout_of

pytestmark = pytest.mark.server

FILE = experiment("exp1", coverage=1.0)
LAYOUT = layout_of([FILE])


@pytest.fixture
def arms() -> Iterator[list[Upstream]]:
    need_envoy()
    with upstreams("control", "t1") as found:
        yield found


@pytest.fixture
def live(arms: list[Upstream], tmp_path: Path) -> Iterator[Gateway]:
    """A new one each: how long Envoy keeps an arm out grows with the number of its faults."""
    ports = {"control": arms[0].port, "exp1/t1": arms[1].port}
    with gateway(tmp_path, declare(ports, [FILE], per_try_timeout=2, timeout=10)) as found:
        yield found


def accounted(live: Gateway, found: Load) -> list[dict[str, Any]]:
    """The log has exactly one line for every request, with the arm that the pure function gives."""
    mine = [line for line in log_lines(live, set(found.statuses)) if line["request_id"] in found.statuses]
    assert Counter(line["request_id"] for line in mine) == dict.fromkeys(found.statuses, 1)
    for line in mine:
        want = assign(LAYOUT, found.units[line["request_id"]])
        assert (line["experiment"], line["assigned"], line["enrolled"]) == (want.experiment, want.arm, "1")
        assert line["served"] == found.arms[line["request_id"]] == line["upstream"]
    return mine


def served_again(live: Gateway) -> None:
    """Until the treatment answers its users again."""
    end = time.monotonic() + 60
    while True:
        with load(live.port, 50) as found:
            time.sleep(0.3)
        assert not found.bad()
        mine = {r for r, unit in found.units.items() if assign(LAYOUT, unit).arm == "t1"}
        if mine and all(found.arms[r] == "t1" for r in mine):
            return
        assert time.monotonic() < end, Counter(found.arms.values())


@pytest.mark.parametrize("fault", ["killed", "slow", "500", "503", "reset"])
def test_a_treatment_that_fails(live: Gateway, arms: list[Upstream], fault: Mode) -> None:
    control, treatment = arms
    with load(live.port, 100) as found:
        time.sleep(0.5)
        if fault == "killed":  # type: ignore[comparison-overlap]
            treatment.kill()
        else:
            treatment.mode = fault
        time.sleep(2.0)
    assert not found.bad()
    lines = accounted(live, found)
    ways = Counter((line["assigned"], line["served"]) for line in lines)
    assert ways["t1", "control"] > 10 and ways["t1", "t1"] > 0 and ways["control", "control"] > 10
    assert ways["control", "t1"] == 0, "nobody is moved out of control"
    assert any(line["attempts"] > 1 for line in lines if line["served"] != line["assigned"])
    assert count_lines(access_logs(live.folder)).fallbacks >= ways["t1", "control"]
    head = next(h for h in reversed(control.heads) if b"x-arm: t1" in h)  # control knows whose user it serves
    assert b"x-enrolled: 1" in head
    if fault == "killed":  # type: ignore[comparison-overlap]
        treatment.start()
    treatment.mode = "ok"
    if fault in ("killed", "500"):
        served_again(live)


def test_a_control_that_is_killed_gives_its_users_no_treatment(live: Gateway, arms: list[Upstream]) -> None:
    control, _ = arms
    control.kill()
    try:
        with load(live.port, 50) as found:
            time.sleep(0.5)
    finally:
        control.start()
    accounted_for = {line["request_id"]: line for line in log_lines(live, set(found.statuses))}
    for request, unit in found.units.items():
        line = accounted_for[request]
        if assign(LAYOUT, unit).arm == "control":
            assert found.statuses[request] == 503 and line["served"] != "t1"
        else:
            assert found.statuses[request] == 200 and line["served"] == "t1"
