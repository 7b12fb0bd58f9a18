"""The pipeline of a look: it compiles, and under KFP's local runner it decides, applies and reports; a second run changes nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipelines
from pipelines.compile import compile_pipeline
from tests.experiment.files import experiment
from tests.experiment.logs import COLUMNS, T0, unit_key
from thinktwice.experiment.assignment import assign, layout_of
from thinktwice.experiment.record import RECORD, read_lines, state_of
from thinktwice.records.events import CLICK_COLUMNS
from thinktwice.release.rollout import ServedArm, start_experiment
from thinktwice.release.rollout_kserve import KServeRollout, KServeSettings

COMPONENTS = Path(pipelines.__path__[0]).parent / "components" / "experiment"
GOLDEN = Path(pipelines.__path__[0]) / "golden"
START = datetime.fromtimestamp(T0, timezone.utc)
FILE = experiment(
    "look",
    coverage=1.0,
    horizon={"days": 1, "looks": 2},
    minimum={"days": 0, "units": 100},
    guardrails=[{"metric": "error_rate", "worse": "increase", "margin": 0.05}],
)
RUN = """
import json, sys
from kfp import local
from pipelines.ctr_experiment import build_experiment_pipeline
request = json.loads(sys.argv[1])
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=request["root"], workspace_root=request["root"] + "-workspace")
build_experiment_pipeline("local")(**request["arguments"])
"""


@pytest.mark.parametrize("profile", ["local", "gpu-single"])
def test_the_compiled_file_is_the_one_in_the_repository(profile: Any, tmp_path: Path) -> None:
    out = tmp_path / "experiment.yaml"
    compile_pipeline(profile, out, pipeline="experiment")
    again = f"thinktwice pipeline compile --pipeline experiment --profile {profile} --out pipelines/golden/experiment-{profile}.yaml"
    assert out.read_text() == (GOLDEN / f"experiment-{profile}.yaml").read_text(), f"the graph changed: `{again}`"


def write_logs(folder: Path, users: int = 500) -> None:
    """Clean logs of five requests of every user, and three times as many clicks in the treatment."""
    lines, rows, clicks = [], [], []
    layout = layout_of([FILE])
    for number in range(users * 5):
        unit = f"u{number % users}"
        arm, at, request = assign(layout, unit), T0 + number, f"r{number}"
        lines.append(
            {
                "ts": f"{at:.6f}", "request_id": request, "experiment": FILE.name, "assigned": arm.arm, "enrolled": "1",
                "served": arm.arm, "code": 200, "attempts": 1, "ms": 10, "route": "split",
            }
        )  # fmt: skip
        served_at = START + timedelta(seconds=number)
        rows.append(
            {
                "log_request_id": request, "log_at": served_at, "log_arm": arm.arm, "log_model_version": arm.arm,
                "log_bundle_hash": "h", "log_item_id": "i0", "log_place": 0, "log_probability": 0.2, "log_num_paths": 1,
                "log_experiment": FILE.name, "log_assigned_arm": arm.arm, "log_enrolled": True, "log_unit": unit_key(unit),
                "log_bucket": arm.bucket, "log_attempt": 1, "log_shadow": False, "log_user_id": unit, "device": "tv",
            }
        )  # fmt: skip
        if number % 10 < (6 if arm.arm == "t1" else 2):
            clicks.append({"request_id": request, "item_id": "i0", "at": served_at, "received_at": served_at})
    for name in ("access", "served", "clicks"):
        (folder / name).mkdir()
    (folder / "access" / "access.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pq.write_table(pa.Table.from_pylist(rows, COLUMNS), folder / "served" / "served-1.parquet")
    pq.write_table(pa.Table.from_pylist(clicks, CLICK_COLUMNS), folder / "clicks" / "clicks.parquet")


def run(tmp_path: Path, number: int) -> None:
    arguments = {
        "name": FILE.name,
        "access_logs": str(tmp_path / "access"),
        "prediction_logs": str(tmp_path / "served"),
        "clicks": str(tmp_path / "clicks"),
        "records_dir": str(tmp_path / "records"),
        "target": "manifest",
        "state_dir": str(tmp_path / "state"),
        "rollout_dir": str(tmp_path / "cluster"),
    }
    request = json.dumps({"root": str(tmp_path / f"run-{number}"), "arguments": arguments})
    done = subprocess.run([sys.executable, "-c", RUN, request], capture_output=True, text=True, cwd=tmp_path)
    (tmp_path / f"run-{number}.log").write_text(done.stdout + done.stderr)
    assert done.returncode == (0 if number == 1 else 1), (done.stdout + done.stderr)[-3000:]


@pytest.mark.pipeline
def test_a_look_under_the_local_runner(tmp_path: Path) -> None:
    write_logs(tmp_path)
    versions = {
        b: ServedArm(name="", model_version=f"m-{b}", bundle_hash=b * 8, where=f"s3://models/m-{b}/")
        for b in ("b0", "b1")
    }
    target = KServeRollout(tmp_path / "cluster", KServeSettings(storage="s3://models/{model_version}/"), versions)
    start_experiment(tmp_path / "records", FILE, target, START)
    run(tmp_path, 1)
    lines = read_lines(tmp_path / "records" / FILE.name / RECORD)
    assert [line.kind for line in lines] == ["start", "decision", "effect"]
    assert state_of(lines).ended == "promote"
    served = yaml.safe_load((tmp_path / "cluster" / "inferenceservice-control.yaml").read_text())
    assert served["spec"]["predictor"]["model"]["storageUri"] == "s3://models/m-b1/"
    written = [path for path in (tmp_path / "run-1").rglob("report*") if path.is_file()]
    assert len(written) == 1, sorted((tmp_path / "run-1").rglob("*"))
    page = written[0].read_text(encoding="utf-8")
    assert "Promote t1" in page and "<script" not in page and "http" not in page.split("<body>")[1]
    run(tmp_path, 2)  # it has ended: the step collect says so, and nothing is written
    assert "look does not run" in (tmp_path / "run-2.log").read_text()
    assert read_lines(tmp_path / "records" / FILE.name / RECORD) == lines


@pytest.mark.parametrize("name", ["collect", "join", "analyse", "decide", "apply"])
def test_the_descriptions_name_inputs_and_outputs(name: str) -> None:
    described = yaml.safe_load((COMPONENTS / name / "metadata.yaml").read_text())
    component = getattr(importlib.import_module(f"components.experiment.{name}.component"), name)
    assert set(described["inputs"]) == set(component.component_spec.inputs)
    assert set(described["outputs"]) == set(component.component_spec.outputs)
