"""Every request through a real Envoy to real servers is accounted for, whatever fails meanwhile: the counts of the collected
exposures add up to the lines of the access logs and the rows of the prediction logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from serving.gateway.access_log import access_logs
from serving.gateway.process import Gateway
from serving.local.processes import free_ports, scored, start_child
from tests.experiment.files import experiment
from tests.gateway.gateways import declare, gateway, need_envoy
from tests.gateway.load import Load, load
from tests.serving.small import small
from thinktwice.experiment.assignment import assign, bucket_of, layout_of
from thinktwice.experiment.exposures import collect_exposures
from thinktwice.experiment.join import EXPOSURES, REQUESTS
from thinktwice.experiment.join_counts import JoinCounts
from thinktwice.records.served import PART

__all__ = ["small"]
pytestmark = pytest.mark.server

FILE = experiment("exp1", coverage=0.9)
LAYOUT = layout_of([FILE])
RATE = 40


@dataclass
class Arm:
    """One server: its process, and the folder of its prediction log."""

    process: subprocess.Popen[bytes]
    served: Path
    mode: Path

    def rows(self) -> list[dict[str, Any]]:
        return [row for part in sorted(self.served.glob(PART)) for row in pq.read_table(part).to_pylist()]


@dataclass
class World:
    """Servers of both arms, and the gateways that stood before them."""

    folder: Path
    arms: dict[str, Arm] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    access: list[Path] = field(default_factory=list)

    @contextmanager
    def gateway(self, name: str) -> Iterator[Gateway]:
        ports = {"control": self.ports["control"], "exp1/t1": self.ports["t1"]}
        declared = declare(ports, [FILE], per_try_timeout=2, timeout=20)
        with gateway(self.folder / name, declared) as live:
            yield live
        self.access += access_logs(self.folder / name)

    def set(self, arm: str, mode: str) -> None:
        part = self.arms[arm].mode.with_suffix(".part")
        part.write_text(mode)
        part.replace(self.arms[arm].mode)

    def end(self) -> None:
        """Every server finishes its requests and writes its rows."""
        for arm in self.arms.values():
            if arm.process.poll() is None:
                arm.process.terminate()
                arm.process.wait(30)

    def collect(self) -> JoinCounts:
        parts = [part for arm in self.arms.values() for part in sorted(arm.served.glob(PART))]
        now = datetime.now(timezone.utc)
        return collect_exposures([FILE], self.access, parts, self.folder / "out", now).counts


@contextmanager
def world(small: Path, folder: Path, largest: int = 0) -> Iterator[World]:
    need_envoy()
    found = World(folder)
    for arm, port in zip(("control", "t1"), free_ports(2), strict=True):
        served, mode = folder / f"served-{arm}", folder / f"mode-{arm}"
        mode.write_text("ok")
        command = [
            sys.executable,
            "-m",
            "tests.gateway.predictor",
            str(small / "bundle"),
            arm,
            str(port),
            str(served),
            str(mode),
        ]
        command.append(str(largest if arm == "t1" else 0))
        found.arms[arm] = Arm(
            start_child(command, folder / f"{arm}.log", {**os.environ, "OMP_NUM_THREADS": "1"}), served, mode
        )
        found.ports[arm] = port
    try:
        end = time.monotonic() + 120
        while not all(scored(f"http://127.0.0.1:{port}/v1/models/ctr:predict") for port in found.ports.values()):
            texts = [(folder / f"{arm}.log").read_text()[-2000:] for arm in found.arms]
            assert time.monotonic() < end and all(a.process.poll() is None for a in found.arms.values()), texts
            time.sleep(0.1)
        yield found
    finally:
        for one in found.arms.values():
            one.process.kill()
            one.process.wait(10)
            assert one.process.stdin is not None
            one.process.stdin.close()


def drive(live: Gateway, seconds: float) -> Load:
    with load(live.port, RATE) as found:
        time.sleep(seconds)
    return found


def assert_accounted(counts: JoinCounts, sent: set[str], found: World) -> None:
    """The counts add up, and the ids of both logs say the same."""
    assert counts.lines == counts.requests + counts.open + counts.repeated + counts.broken + counts.torn
    answered = counts.unnamed + counts.lost + counts.unlogged + counts.joined + counts.ambiguous_requests
    assert counts.requests == counts.unanswered + answered
    accounted = (
        counts.joined + counts.superseded + counts.shadow + counts.direct + counts.unexplained + counts.ambiguous
    )
    assert counts.predicted == accounted + counts.open_predicted
    assert counts.requests <= len(sent)
    rows = [row for arm in found.arms.values() for row in arm.rows()]
    assert counts.predicted == len({(r["log_request_id"], r["log_arm"]) for r in rows})
    assert (counts.wrong_arm, counts.repeated, counts.broken, counts.ambiguous, counts.doubled, counts.open) == (0,) * 6
    assert counts.exposures == pq.read_table(found.folder / "out" / EXPOSURES).num_rows
    enrolled = sum(arm.requests for arm in counts.arms)
    assert enrolled == pq.read_table(found.folder / "out" / REQUESTS).num_rows


def test_every_request_is_accounted_for(small: Path, tmp_path: Path) -> None:
    with world(small, tmp_path) as found:
        loads = {}
        for fault in ("500", "503", "slow"):
            with found.gateway(fault) as live, load(live.port, RATE) as loads[fault]:
                time.sleep(0.7)
                found.set("t1", fault)
                time.sleep(2.5)
                found.set("t1", "ok")
        with found.gateway("gateway-killed") as live, load(live.port, RATE) as loads["gateway killed"]:
            time.sleep(0.7)
            for child in psutil.Process(live.process.pid).children(recursive=True):
                child.kill()
            time.sleep(0.5)
        with found.gateway("killed") as live, load(live.port, RATE) as loads["killed"]:
            time.sleep(1.0)
            found.arms["t1"].process.send_signal(signal.SIGKILL)
            time.sleep(1.0)
        found.end()
        counts = found.collect()
        sent = {request for one in loads.values() for request in one.statuses}
        assert_accounted(counts, sent, found)
        for fault, one in loads.items():
            assert fault == "gateway killed" or not one.bad(), f"{fault}: {Counter(one.statuses.values())}"
        lines = {line for path in found.access for line in ids(path)}
        control, treatment = (
            {r["log_request_id"] for r in found.arms[arm].rows() if r["log_experiment"]} for arm in ("control", "t1")
        )
        # What only the kills lose: lines that Envoy had not flushed, rows that the treatment had not written.
        lost_lines = (control | treatment) - lines
        assert counts.unexplained == len(lost_lines) <= len(loads["gateway killed"].statuses)
        assert lost_lines <= set(loads["gateway killed"].statuses)
        by = {arm: {r for one in loads.values() for r, name in one.arms.items() if name == arm} for arm in found.arms}
        assert counts.lost == len(by["t1"] & lines - treatment), "enrolled ones are never sampled out"
        assert by["t1"] - treatment <= set(loads["killed"].arms)
        assert counts.unlogged == len(by["control"] & lines - control) > 0
        slow = treatment & by["control"]
        assert counts.superseded == len(slow) > 0, "computed by the treatment, answered by control"
        rows = {
            (r["log_request_id"], r["log_arm"]): r
            for arm in found.arms.values()
            for r in arm.rows()
            if r["log_request_id"] in sent
        }
        units = {request: unit for one in loads.values() for request, unit in one.units.items()}
        for (request, _), row in rows.items():
            want = assign(LAYOUT, units[request])
            decided = row["log_experiment"], row["log_assigned_arm"], row["log_enrolled"], row["log_bucket"]
            assert decided == (want.experiment, want.arm, want.enrolled, bucket_of(FILE.salt, units[request]))
            assert row["log_shadow"] is False and row["log_attempt"] >= 1 and row["log_unit"] is not None
        assert any(r["log_attempt"] > 1 for r in rows.values()), "a retry says that it is one"
        assert len({(units[r], row["log_unit"]) for (r, _), row in rows.items()}) == len({units[r] for r, _ in rows})


def test_a_full_disk_under_the_prediction_log_is_counted(small: Path, tmp_path: Path) -> None:
    with world(small, tmp_path, largest=500) as found:
        with found.gateway("gateway") as live:
            sent = drive(live, 1.5)
        found.end()
        counts = found.collect()
        assert_accounted(counts, set(sent.statuses), found)
        assert not sent.bad() and not found.arms["t1"].rows()
        assert counts.lost == sum(arm == "t1" for arm in sent.arms.values()) > 5
        assert counts.joined == counts.requests - counts.lost - counts.unlogged


def ids(path: Path) -> set[str]:
    return {json.loads(line)["request_id"] for line in path.read_text().splitlines(True) if line.endswith("\n")}
