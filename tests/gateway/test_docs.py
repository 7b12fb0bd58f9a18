"""The section "Gateway" of docs/experiments.md as a reader follows it: its file, its commands, its client."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.local.processes import free_ports
from tests.gateway.gateways import need_envoy
from tests.gateway.upstreams import upstreams
from thinktwice.experiment.bootstrap import LOG_FORMAT

pytestmark = pytest.mark.server

PAGE = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text("utf-8")
SECTION = PAGE.split("\n## Gateway\n", 1)[1].split("\n## ", 1)[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", SECTION, re.M | re.S)


def block(language: str) -> str:
    (found,) = [text for name, text in BLOCKS if name == language]
    return found


def run(folder: Path, line: str) -> str:
    words = shlex.split(line)
    assert words[0] == "thinktwice"
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_section(tmp_path: Path) -> None:
    need_envoy()
    check, start, reload, status, render = block("sh").splitlines()
    with upstreams("control", "treatment") as (control, treatment):
        port = str(free_ports(1)[0])
        ports = {"8080": port, "8081": str(control.port), "8082": str(treatment.port)}
        text = re.sub(r"(127\.0\.0\.1:)(808[012])", lambda m: m[1] + ports[m[2]], block("yaml"))
        (tmp_path / "gateway.yaml").write_text(text)
        run(tmp_path, "thinktwice experiment new fresh-evidence --out fresh.yaml")
        assert "1 experiments, 2 arms" in run(tmp_path, check)
        assert not (tmp_path / ".thinktwice" / "gateway").exists(), "a check writes nothing"
        process = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(start)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"ready http://127.0.0.1:{port}\n"
            experiment = (tmp_path / "fresh.yaml").read_text()
            (tmp_path / "fresh.yaml").write_text(experiment.replace("coverage: 0.0 ", "coverage: 1.0 ", 1))
            assert run(tmp_path, reload).startswith("live: 2-2-")
            shown = subprocess.run(
                [sys.executable, "-c", block("python").replace("8080", port)],
                cwd=tmp_path, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert shown.returncode == 0, shown.stderr
            assert re.match(r"[0-9a-f]{32} (control|treatment) \[\{", shown.stdout)
            assert b"x-ab-unit: u1" in (control.heads + treatment.heads)[-1] + (control.heads + treatment.heads)[0]
            told = run(tmp_path, status)
            assert "fresh-evidence" in told and "5000–9999" in told
            counts = json.loads(run(tmp_path, status + " --json"))
            assert counts["write_failed"] == 0 and counts["requests"] <= 1
            (tmp_path / "fresh.yaml").write_text(experiment.replace("coverage: 0.0 ", "coverage: 0.5 ", 1))
            command = [sys.executable, "-m", *shlex.split(reload)]
            refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
            assert refused.returncode == 1 and "leave the arm" in refused.stderr and "Traceback" not in refused.stderr
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert process.returncode == 130
        refused = subprocess.run(
            [sys.executable, "-m", *shlex.split(status)], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert refused.returncode == 1 and "no gateway runs in" in refused.stderr
    run(tmp_path, render)
    assert {path.name for path in (tmp_path / "envoy").iterdir()} == {"bootstrap.json", "cds.json", "rds.json"}


def test_the_fields_of_the_log_are_described() -> None:
    table = SECTION.split("| field | meaning |", 1)[1].split("\n\n", 1)[0]
    named = {name for line in table.splitlines()[2:] for name in line.split("|")[1].strip().split(", ")}
    assert named == set(LOG_FORMAT)
