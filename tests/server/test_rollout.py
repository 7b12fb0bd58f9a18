"""An experiment on this machine with real servers and a real Envoy: start, ramp, collect, decide, roll back, promote."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.experiment.planted import plant_worse
from serving.config import VARIABLE, ServingConfig
from serving.local.processes import free_ports
from serving.rollout.collect import collect, now
from serving.rollout.servers import ArmServers, reload_gateway
from serving.telemetry.prediction_log import PredictionLogConfig
from tests.gateway.gateways import need_envoy
from thinktwice.cli import main
from thinktwice.client import Client
from thinktwice.experiment.assignment import assign, layout_of
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.outcomes import Window
from thinktwice.experiment.record import RECORD, append_decision, read_lines, state_of
from thinktwice.records.events import CLICK_COLUMNS
from thinktwice.release.challenger import install_challenger, version_named, versions
from thinktwice.release.champion import read_champion
from thinktwice.release.rollout import change_coverage, start_experiment, stop_experiment
from thinktwice.release.rollout_local import LocalRollout, served_arm

PAGE = Path(__file__).parents[2] / "docs" / "experiments.md"
pytestmark = [pytest.mark.server]

CONFIG = ServingConfig(
    deadline_ms=20_000, prediction_log=PredictionLogConfig(folder="set by the arm", sample=1.0, part_seconds=0.2)
)
PATIENT = {"per_try_timeout": 10.0, "timeout": 30.0}


def declared(name: str, control: str, treatment: str, **fields: object) -> ExperimentFile:
    content = {
        "version": 1,
        "name": name,
        "salt": name,
        "arms": [{"name": "control", "bundle": control}, {"name": "treatment", "bundle": treatment}],
        "ramp": [{"coverage": 0.2}, {"coverage": 1.0, "after_days": 0}],
        "horizon": {"days": 1, "looks": 2},
        "minimum": {"days": 0, "units": 2},
        **fields,
    }
    return ExperimentFile.model_validate(content)


def test_the_whole_loop(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_envoy()
    started: list[str] = []
    start = ArmServers._start
    monkeypatch.setattr(
        ArmServers, "_start", lambda self, arm, wanted: (started.append(arm.name), start(self, arm, wanted))[1]
    )
    home, records = tmp_path / "state", tmp_path / "experiments"
    shutil.copytree(state, home, symlinks=True)
    champion = read_champion(home)
    assert champion is not None
    worse = plant_worse(home, champion.bundle_dir, champion.feature_store_dir, share=1.0, seed=1)
    file = declared("loop", champion.info.bundle_hash[:12], worse.bundle_hash[:12])
    folder = home / "rollout"
    running: list[ArmServers] = []

    def reload() -> None:
        if running and not running[0].follow():
            reload_gateway(folder)

    target = LocalRollout(home, folder, reload)
    start_experiment(records, file, target)
    with ArmServers(folder, free_ports(1)[0], CONFIG, settings=PATIENT) as servers:
        running.append(servers)
        clicks = answered(servers.url, 40, file.model_copy(update={"coverage": 0.2}))
        change_coverage(records, file.name, 1.0, target)
        clicks += answered(servers.url, 40, file.model_copy(update={"coverage": 1.0}))
        pq.write_table(pa.Table.from_pylist(clicks, CLICK_COLUMNS), tmp_path / "clicks.parquet")
        look = state_of(read_lines(records / file.name / RECORD))
        at = now()
        time.sleep(3.0)  # the last lines and rows are written
        found = collect(
            look, folder, [tmp_path / "clicks.parquet"], tmp_path / "look", at=at, window=Window(seconds=0.001), exposed=tmp_path / "exposed.parquet"
        )  # fmt: skip
        assert [arm.warm_replicas for arm in found.arms] == [1, 1], "the gateway checks them"
        assert found.exposures is not None and found.exposures.lost == found.exposures.wrong_arm == 0
        assert found.exposures.wrong_bucket == found.exposures.unexplained == 0
        assert sum(arm.units for arm in found.arms) == len({assigned for assigned in clicks_units(40, file)})
        versions_seen = {arm.arm: arm.versions for arm in found.exposures.arms}
        assert versions_seen["treatment"][0].endswith(worse.bundle_hash)
        remembered = pq.read_table(tmp_path / "exposed.parquet")
        assert remembered.num_rows == sum(arm.units for arm in found.arms)
        record = append_decision(records / file.name / RECORD, look.file, found)
        assert record.verdict.decision.action in ("hold", "ramp")
        begin = time.monotonic()
        stop_experiment(records, file.name, target)
        assert {served for _, served in arms_of(servers.url, 40)} == {"control"}, time.monotonic() - begin
        following = declared("next", file.control.bundle, worse.bundle_hash[:12], coverage=1.0, ramp=[])
        servers.prepare(served_arm("next/treatment", worse), served_arm("unused/treatment", worse))
        start_experiment(records, following, target)
        assert {served for _, served in arms_of(servers.url, 40)} == {"control", "treatment"}
        assert set(servers.ports()) == {"control", "next/treatment"}
        assert started.count("next/treatment") == 1, "the server that was started ahead is taken"
        assert read_champion(home) == champion  # a challenger never becomes the champion by itself


def clicks_units(number: int, file: ExperimentFile) -> list[str]:
    """Units that are enrolled at some coverage."""
    layout = layout_of([file.model_copy(update={"coverage": 1.0})])
    return [unit for unit in (f"u{n}" for n in range(number)) if assign(layout, unit).enrolled]


def arms_of(url: str, number: int) -> list[tuple[str, str | None]]:
    """Arm that served each unit."""
    with Client(url) as client:
        return [
            (f"u{n}", client.predict({"user_id": f"u{n}", "candidates": ["i1", "i2"]}, unit=f"u{n}").served_arm)
            for n in range(number)
        ]


def answered(url: str, number: int, file: ExperimentFile) -> list[dict[str, object]]:
    """Send requests, check their arms, and return a click on the first item of each."""
    layout, clicks = layout_of([file]), []
    with Client(url) as client:
        for n in range(number):
            reply = client.predict({"user_id": f"u{n}", "candidates": ["i1", "i2"]}, unit=f"u{n}")
            assert reply.served_arm == assign(layout, f"u{n}").arm
            clicks.append({"request_id": reply.request_id, "item_id": "i1", "at": now(), "received_at": now()})
    return clicks


def test_a_promotion_makes_a_challenger_the_champion_once(state: Path, tmp_path: Path) -> None:
    home, records = tmp_path / "state", tmp_path / "experiments"
    shutil.copytree(state, home, symlinks=True)
    champion = read_champion(home)
    assert champion is not None
    version = plant_worse(home, champion.bundle_dir, champion.feature_store_dir, share=0.5, seed=2)
    again = install_challenger(
        home,
        bundle_dir=version.bundle_dir,
        archive=version.archive,
        feature_store_dir=version.feature_store_dir,
        mode="off",
        accepted=True,
        why="another time",
    )
    assert again == version and again.challenger is not None and not again.challenger.accepted
    assert [v.challenger is not None for v in versions(home)] == [False, True]
    assert version_named(home, version.bundle_hash[:8]) == version
    target = LocalRollout(home, home / "rollout")
    file = declared("promo", champion.info.bundle_hash, version.bundle_hash)
    start_experiment(records, file, target)
    assert target.status().coverage == {"promo": 0.2}
    target.promote(file, "treatment")
    target.promote(file, "treatment")
    now_champion = read_champion(home)
    assert now_champion is not None and now_champion.info.bundle_hash == version.bundle_hash
    (control,) = target.status().arms
    assert control.name == "control" and Path(control.where) == now_champion.folder.resolve()
    # The next experiment serves it from there, too: feedback updates the champion's store and not that of the challenger.
    assert version_named(home, version.bundle_hash).folder == now_champion.folder.resolve()
    following = declared("next", version.bundle_hash, champion.info.bundle_hash)
    start_experiment(records, following, target)
    assert next(arm for arm in target.status().arms if arm.name == "control") == control
    same = declared("same", version.bundle_hash, version.bundle_hash, exclusive_group="g")
    assert {Path(v.folder) for v in target._versions(same)} == {now_champion.folder.resolve()}
    assert len([v for v in versions(home) if v.bundle_hash == version.bundle_hash and v.challenger is None]) == 1


def served(port: int, home: Path, work: Path) -> subprocess.Popen[str]:
    patient = home.parent / "serving.yaml"
    patient.write_text("deadline_ms: 20000\n")
    command = [sys.executable, "-m", "thinktwice", "experiment", "serve", "--state", str(home), "--work", str(work)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", VARIABLE: str(patient)}
    return subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_the_command_that_serves(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`experiment serve` serves the champion, takes and drops the arms of experiments, and ends with its servers."""
    need_envoy()
    home, work = tmp_path / "state", tmp_path / "work"
    shutil.copytree(state, home, symlinks=True)
    champion = read_champion(home)
    assert champion is not None
    version = plant_worse(home, champion.bundle_dir, champion.feature_store_dir, share=0.5, seed=4)
    file = declared("served", champion.info.bundle_hash, version.bundle_hash, coverage=1.0, ramp=[])
    (tmp_path / "served.yaml").write_text(file.model_dump_json(exclude_none=True))
    place = ["--state", str(home), "--work", str(work)]
    port = free_ports(1)[0]
    process = served(port, home, work)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready http://127.0.0.1:{port}/v1/models/ctr:predict\n"
        url = f"http://127.0.0.1:{port}"
        assert {arm for _, arm in arms_of(url, 8)} == {"control"}
        second = served(free_ports(1)[0], home, work)
        _, errors = second.communicate(timeout=120)
        assert second.returncode == 1 and "are served already" in " ".join(errors.split())
        assert main(["experiment", "start", str(tmp_path / "served.yaml"), *place]) == 0
        end = time.monotonic() + 240
        while {arm for _, arm in arms_of(url, 8)} != {"control", "treatment"}:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.5)
        assert main(["experiment", "stop", "served", *place]) == 0
        assert {arm for _, arm in arms_of(url, 8)} == {"control"}
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=120)
    said = " ".join(errors.split())
    assert "arms: control, served/treatment" in said and "servers and gateway stopped" in said
    assert "Traceback" not in said
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


#: Commands of the page that are not run here, and what runs what they call.
ELSEWHERE = {
    "thinktwice experiment serve": "test_the_command_that_serves",
    "thinktwice experiment collect fresh-evidence --events events --out evidence.json": "test_the_whole_loop collects",
    "thinktwice bundle challenger --mode uttsi --recipe ml-100k": "tests/components/test_challenge.py",
}


def test_the_commands_of_the_page(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert set(ELSEWHERE) <= {line for block in blocks for line in block.splitlines()}
    home = tmp_path / "home" / "state"
    home.parent.mkdir()
    shutil.copytree(state, home, symlinks=True)
    champion = read_champion(home)
    assert champion is not None
    version = plant_worse(home, champion.bundle_dir, champion.feature_store_dir, share=0.5, seed=3)
    file = declared("fresh-evidence", champion.info.bundle_hash, version.bundle_hash)
    for number, block in enumerate(blocks):
        folder = tmp_path / f"block-{number}"
        (folder / ".thinktwice").mkdir(parents=True)
        (folder / ".thinktwice" / "state").symlink_to(home, target_is_directory=True)
        (folder / "fresh.yaml").write_text(file.model_dump_json(exclude_none=True))
        monkeypatch.chdir(folder)
        lines = [line for line in block.splitlines() if line not in ELSEWHERE]
        if "experiment apply" in block:
            lines.insert(0, "thinktwice experiment start fresh.yaml")
        for line in lines:
            capsys.readouterr()
            assert main(shlex.split(line)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
            assert capsys.readouterr().out.strip(), line
