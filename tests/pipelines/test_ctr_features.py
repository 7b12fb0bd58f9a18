"""The features pipeline: it compiles, and under KFP's local runner it brings a champion's Redis up to date."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import feast  # noqa: F401 - sets warning filters on import, which must not happen within a test
import polars as pl
import pytest

import pipelines
from feature_repo.readback import online_rows, same_value
from feature_repo.store import build, open_store, quiet
from pipelines.compile import compile_pipeline
from pipelines.profiles import ONLINE_SECRET, REGISTRY_SECRET, STATE_CLAIM
from tests.components.deployed import make_champion
from tests.features import redis_server
from tests.features.conftest import SCHEMA, make_rows, write_clean
from tests.pipelines import ir
from thinktwice.cli import main
from thinktwice.data.feature_tables import build_feature_tables, table_specs
from thinktwice.files import read_json
from thinktwice.release.feature_store import REDIS_ADDRESS
from thinktwice.schema import parse_schema

GOLDEN = Path(pipelines.__path__[0]) / "golden"
TEXT = re.sub(r"vectors:\n- .*\n", "", SCHEMA).replace(", title: name", "")
SPECS = table_specs(parse_schema(TEXT, where="test"))
# Of each instant one row with a user: what validation leaves alone.
ROWS = [
    {k: v for k, v in row.items() if k not in ("picture", "title")}
    for row in {row["event_time"]: row for row in make_rows(num_rows=300) if row["user_id"]}.values()
]
CUT = ROWS[len(ROWS) // 2]["event_time"]
END = CUT + timedelta(days=1, hours=3)
RUN = """
import json, sys
from kfp import local
from pipelines.ctr_features import build_features_pipeline
request = json.loads(sys.argv[1])
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=request["root"], workspace_root=request["root"] + "-workspace")
build_features_pipeline("local")(**request["arguments"])
"""


@pytest.mark.parametrize(
    ("name", "profile", "words"),
    [
        ("features-local", "local", []),
        ("features-cpu-pool", "cpu-pool", []),
        ("features-scheduled", "cpu-pool", ["--scheduled"]),
    ],
)
def test_the_compiled_file_is_the_one_in_the_repository(
    name: str, profile: Any, words: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "features.yaml"
    compile_pipeline(profile, out, pipeline="features", scheduled=bool(words))
    options = " ".join(["--pipeline features", f"--profile {profile}", *words])
    again = f"thinktwice pipeline compile {options} --out pipelines/golden/{name}.yaml"
    assert out.read_text() == (GOLDEN / f"{name}.yaml").read_text(), f"the graph changed: `{again}`"


def test_the_end_of_the_window_is_the_cut_off_of_the_log(tmp_path: Path) -> None:
    for scheduled in (False, True):
        assert main(
            ["pipeline", "compile", "--pipeline", "features", "--profile", "cpu-pool", "--out", str(tmp_path / "x.yaml")]
            + ["--scheduled"] * scheduled
        ) == 0  # fmt: skip
        spec, kubernetes = ir.load(tmp_path / "x.yaml")
        ends = [ir.tasks(spec)[task]["inputs"]["parameters"]["until"] for task in ("ingest", "refresh-features")]
        constant = {"runtimeValue": {"constant": "{{$.pipeline_job_schedule_time_utc}}"}}
        assert (ends == [constant, constant]) if scheduled else ("until" in str(ends[0]) and "until" in str(ends[1]))
    task = ir.tasks(spec)["refresh-features"]
    assert not task.get("cachingOptions", {}).get("enableCache") and "retryPolicy" not in task
    settings = json.dumps(kubernetes["refresh-features"])
    assert ONLINE_SECRET in settings and STATE_CLAIM in settings and REGISTRY_SECRET not in settings


def run(folder: Path) -> None:
    arguments = {
        "source": "log",
        "source_path": str(folder / "log.csv"),
        "schema_path": str(folder / "schema.yaml"),
        "until": END.isoformat(),
        "state_dir": str(folder / "state"),
    }
    request = json.dumps({"root": str(folder / "run"), "arguments": arguments})
    done = subprocess.run([sys.executable, "-c", RUN, request], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.pipeline
@pytest.mark.server
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_run_under_the_local_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pl.DataFrame(ROWS, infer_schema_length=None).with_columns(at=pl.col("event_time").dt.epoch("s"))
    log.rename({"label": "click"}).drop("event_time", "row_id", "hour").write_csv(tmp_path / "log.csv")
    (tmp_path / "schema.yaml").write_text(TEXT)
    first = write_clean(tmp_path / "first", TEXT, [row for row in ROWS if row["event_time"] < CUT])
    with redis_server.running(tmp_path) as address:
        monkeypatch.setenv(REDIS_ADDRESS, address)
        build(first.folder, tmp_path / "store", feature_version="m-1", online="redis")
        store = make_champion(tmp_path / "state", tmp_path / "store")
        run(tmp_path)
        (record,) = (tmp_path / "run").rglob("refresh.json")
        found = read_json(record)
        assert found["end"] == END.isoformat() and all(view["keys"] for view in found["views"])
        # What a predictor reads now is what the log says as of the scheduled time.
        tables = write_clean(tmp_path / "later", TEXT, [row for row in ROWS if row["event_time"] < END])
        build_feature_tables(tables.folder, tmp_path / "tables", tables.schema)
        for spec in SPECS:
            table = pl.read_parquet(tmp_path / "tables" / f"{spec.name}.parquet").filter(
                pl.col("event_timestamp") < END
            )
            latest = table.sort("event_timestamp").group_by(spec.key, maintain_order=True).last().to_dicts()
            with open_store(store) as opened, quiet():
                answers = online_rows(opened, spec, [row[spec.key] for row in latest])
            for row, answer in zip(latest, answers, strict=True):
                for name, value in zip(spec.features, answer.values, strict=True):
                    assert same_value(row[name], value), (spec.name, row, name, value)
