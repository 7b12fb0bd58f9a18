"""Failing arms and changing routes under load: results at the clients, content of the log, time until an arm recovers."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gateway.cost import SHIPPED
from serving.gateway.access_log import access_logs, count_lines
from serving.gateway.binary import find_envoy
from serving.gateway.process import probe_token
from serving.gateway.reload import reload
from tests.experiment.files import COVERAGES, UNIT_CHARACTERS, experiment
from tests.gateway.gateways import declare, gateway, log_lines
from tests.gateway.load import load
from tests.gateway.upstreams import upstreams
from thinktwice.experiment.assignment import assign, layout_of

FAULTS = ("killed", "slow", "500", "503", "reset")
RECOVERY_LIMIT = 60.0


def fault(folder: Path, kind: str, rate: float, seconds: float) -> dict[str, Any]:
    """A treatment with half of the users fails for ``seconds`` under ``rate`` requests per second, and is repaired."""
    file = experiment("exp1", coverage=1.0)
    layout = layout_of([file])
    with upstreams("control", "t1") as (control, treatment):
        with gateway(folder, declare({"control": control.port, "exp1/t1": treatment.port}, [file], **SHIPPED)) as live:
            with load(live.port, rate) as traffic:
                time.sleep(1.0)
                if kind == "killed":
                    treatment.kill()
                else:
                    treatment.mode = kind  # type: ignore[assignment]
                time.sleep(seconds)
                if kind == "killed":
                    treatment.start()
                treatment.mode = "ok"
                began, recovered = time.monotonic(), None
                answered = set(traffic.arms)
                while recovered is None and time.monotonic() - began < RECOVERY_LIMIT:
                    time.sleep(0.05)
                    new = {r: a for r, a in list(traffic.arms.items()) if r not in answered}
                    answered |= new.keys()
                    if "t1" in new.values():
                        recovered = time.monotonic() - began
                time.sleep(0.5)
            lines = [line for line in log_lines(live, set(traffic.statuses)) if line["request_id"] in traffic.statuses]
    times = Counter(line["request_id"] for line in lines)
    ways = Counter((line["assigned"], line["served"]) for line in lines)
    wrong = sum(line["assigned"] != assign(layout, traffic.units[line["request_id"]]).arm for line in lines)
    return {
        "requests": len(traffic.statuses),
        "client_errors": len(traffic.bad()),
        "not_once_in_log": len(traffic.statuses) - sum(times[request] == 1 for request in traffic.statuses),
        "assigned_otherwise": wrong,
        "control_served_by_treatment": ways["control", "t1"],
        "treatment_served_by_control": ways["t1", "control"],
        "recovered_s": recovered,
    }


def ramp(folder: Path, rate: float, rounds: int) -> dict[str, Any]:
    """Coverage goes through all steps of a ramp and the experiment is stopped, repeatedly, under load."""
    requests = bad = reloads = missing = impossible = 0
    with upstreams("control", "t1") as (control, treatment):
        ports = {"control": control.port, "exp1/t1": treatment.port}
        with gateway(folder, declare(ports, [experiment("exp1")], **SHIPPED)) as live:
            envoy = find_envoy()
            with load(live.port, rate) as traffic:
                for _ in range(rounds):
                    for coverage in (*COVERAGES, 0.0):
                        declared = declare(ports, [experiment("exp1", coverage=coverage)], port=live.port, **SHIPPED)
                        reload(declared, live.folder, envoy, live.admin, probe_token(declared, live.folder))
                        reloads += 1
            lines = {line["request_id"]: line for line in log_lines(live, set(traffic.statuses))}
            counts = count_lines(access_logs(live.folder))
    layouts = [layout_of([experiment("exp1", coverage=c)]) for c in (*COVERAGES, 0.0)]
    for request, unit in traffic.units.items():
        possible = {(a.arm, "1" if a.enrolled else "0") for a in (assign(layout, unit) for layout in layouts)}
        if (line := lines.get(request)) is None:
            missing += 1
        else:
            impossible += (line["assigned"], line["enrolled"]) not in possible
    requests, bad = len(traffic.statuses), len(traffic.bad())
    return {
        "reloads": reloads,
        "requests": requests,
        "lost": bad,
        "not_in_log": missing,
        "other_lines": counts.requests - requests,
        "impossible_arms": impossible,
    }


def units(folder: Path, number: int, rate: float) -> dict[str, Any]:
    """Whether Envoy assigns ids of all characters and lengths as the pure function does."""
    rng = random.Random(7)
    ids = [
        "".join(rng.choices(UNIT_CHARACTERS, k=rng.choice([1, 2, 8, 31, 32, 33, 64, 255, 256, 257])))
        for _ in range(number)
    ]
    file = experiment("exp1", coverage=0.25)
    layout = layout_of([file])
    with upstreams("control", "t1") as (control, treatment):
        with gateway(folder, declare({"control": control.port, "exp1/t1": treatment.port}, [file], **SHIPPED)) as live:
            with load(live.port, rate, lambda n: ids[n % number]) as traffic:
                time.sleep(number / rate)
            lines = {line["request_id"]: line for line in log_lines(live, set(traffic.statuses))}
    wrong = 0
    for request, unit in traffic.units.items():
        want, line = assign(layout, unit), lines[request]
        logged = (line["experiment"], line["assigned"], line["enrolled"])
        wrong += logged != (want.experiment, want.arm, "1" if want.enrolled else "0")
    return {"units": len(set(traffic.units.values())), "requests": len(traffic.statuses), "wrong": wrong}
