"""The whole pipeline under KFP's local runner, on a small log of one's own: both sides of the gates, reuse, and Ctrl-C."""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from components.deployment.rollout.objects import Version
from components.deployment.rollout.run import status
from pipelines.arguments import RunArguments
from pipelines.beside import MEANWHILE
from pipelines.run import RunResult, run_local
from pipelines.summary import print_summary
from tests.cluster.api_process import ROOT
from tests.cluster.served import V1, api_server, install, session
from tests.manifests.conftest import rendered
from tests.pipelines import ir
from tests.pipelines.own_log import NUM_ODD, write_log
from tests.storage import servers as object_stores
from thinktwice.console.options import LAST_RUN
from thinktwice.console.processes import group_alive
from thinktwice.data.encoder import Encoder
from thinktwice.errors import PipelineError
from thinktwice.files import read_json
from thinktwice.release.champion import read_champion, verify_archive
from thinktwice.release.model_store import list_versions, version_folder
from thinktwice.schema import load_schema
from thinktwice.threads import usable_cores

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

REUSABLE = ir.TASKS - ir.EFFECTS - {"package"}  # the archive follows the blessing, which is given afresh each time


class Events(list):
    """Collects the events of a run."""

    def tasks(self, kind: str) -> list[str]:
        """Names of the tasks that reported `kind`, in order."""
        return [e["stage"].removeprefix("task/") for e in self if e["stage"].startswith("task/") and e["event"] == kind]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def arguments(work: Path) -> RunArguments:
    log, schema = write_log(work)
    return RunArguments(source="parquet", source_path=str(log), schema_path=str(schema), recipe="tiny")


@pytest.fixture(scope="module")
def first(work: Path, arguments: RunArguments) -> tuple[RunResult, Events]:
    events = Events()
    return run_local(arguments, work_dir=work, state_dir=work / "state", on_event=events.append), events


def leftovers(work: Path) -> list[Path]:
    """What a run must not leave: temporary files, and folders of steps that did not end."""
    parts = [p for p in work.rglob("*") if p.name.endswith((".part", ".old", ".tmp"))]
    steps = [p for p in work.glob("pipeline/*/*") if p.is_dir() and not (p / "executor_output.json").exists()]
    return [*parts, *steps, *work.glob("runs/*/tmp")]


def test_a_good_model_of_ones_own_log_is_deployed(first: tuple[RunResult, Events], work: Path):
    result, events = first
    assert result.blessed, read_json(result.blessing / "blessing.json")["reasons"]
    assert set(result.tasks) == ir.TASKS
    assert all(task.status == "SUCCESS" and not task.reused for task in result.tasks.values())
    assert events.tasks("start") == events.tasks("done") and set(events.tasks("done")) == ir.TASKS
    beside = {e["stage"].removeprefix("task/") for e in events if e["event"] == "note" and e["text"] == MEANWHILE}
    assert beside <= ir.TRAINING_TASKS and bool(beside) == (usable_cores() > 1)
    champion = read_champion(work / "state")
    assert champion is not None and verify_archive(champion) and champion.info.model_version.startswith("shop-")
    evaluation = read_json(result.bundle / "report" / "evaluation.json")
    auc = {column["key"]: column["metrics"]["auc"] for column in evaluation["columns"]}
    assert auc["plain"] > 0.7  # the pattern of the log is worth 0.8
    for report in (result.data_report, result.model_report):
        assert (report.suffix == ".html" and "<svg" in report.read_text()) or report == result.data_report
    assert read_json(result.model_report.with_suffix(".json")) == evaluation
    assert result.model_report.with_suffix(".csv").read_text().startswith("section,subject,metric,value,")
    assert evaluation["findings"]["pretraining"]["kind"] == "dgenctr"
    assert read_json(work / LAST_RUN)["blessed"] is True
    # Every kind of input of a model reaches the model.
    described = read_json(result.bundle / "model.json")["fields"]
    fields = dict(zip(described["names"], described["kinds"], strict=True))
    assert fields["look"] == "vector" and fields["bought_before"] == "sequence"
    assert load_schema(result.bundle / "schema.yaml").scenario == "device"
    # Some rows hold a label that is none: they are in quarantine, and the user reads where and what to do.
    quarantined = read_json(result.quarantine / "quarantine.json")["rows_quarantined"]
    assert quarantined == NUM_ODD
    console = Console(width=400, record=True, file=io.StringIO())
    print_summary(console, result)
    shown = console.export_text()
    assert f"{NUM_ODD} rows are in quarantine" in shown
    parts = read_json(result.training_set / "training_set.json")["parts"]
    table = shown[shown.index("rows, split by time") :].splitlines()[2:6]
    assert table[0].split() == ["rows", "from", "to", "click", "rate", "unseen", "users", "unseen", "items"]
    for line, part in zip(table[1:], ("train", "valid", "test"), strict=True):
        assert f"{parts[part]['rows']:,}" in line and parts[part]["window"][1][:10] in line
        assert part == "train" or f"{parts[part]['unseen_share']['user']:.1%}" in line
    words = shown[shown.index("thinktwice data replay") :].splitlines()[0].split()
    assert Path(words[words.index("--quarantine") + 1]).resolve() == result.quarantine
    assert words[-4:] == ["--out", "DIR", "--schema", "MENDED.yaml"]
    assert leftovers(work) == []


def test_a_second_run_reuses_what_did_not_change(first: tuple[RunResult, Events], work: Path, arguments: RunArguments):
    events = Events()
    result = run_local(arguments, work_dir=work, state_dir=work / "state", on_event=events.append)
    assert {name for name, task in result.tasks.items() if task.reused} == REUSABLE
    assert result.bundle == first[0].bundle
    assert result.tasks["bless"].outputs["blessing"] != first[0].tasks["bless"].outputs["blessing"]
    notes = [e["text"] for e in events if e["event"] == "note" and e["stage"] == "task/ingest"]
    assert "reused" in notes and len(notes) > 1  # a reused step still says what it found
    assert read_champion(work / "state") is not None


@pytest.mark.server
def test_the_deployed_model_becomes_a_canary_in_a_cluster(
    first: tuple[RunResult, Events], work: Path, arguments: RunArguments, tmp_path: Path
):
    """Its version is copied to the store of models, and starts beside the one that serves; what did not change is reused."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: it renders the overlay")
    standard = [value for value in yaml.safe_load_all(rendered(ROOT / "manifests/overlays/standard")) if value]
    with (
        api_server(tmp_path, None) as api,
        object_stores.moto(tmp_path) as address,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**object_stores.environment(address), "KUBECONFIG": str(api.kubeconfig)}.items():
            patch.setenv(name, value)
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(api.kubeconfig))
        install(api, standard)
        served = arguments.model_copy(
            update={"serving_namespace": "runs", "model_storage": "s3://ready/versions", "canary_percent": 20}
        )
        result = run_local(served, work_dir=work, state_dir=work / "state")
        assert set(result.tasks) == ir.TASKS | {ir.CANARY}
        assert {name for name, task in result.tasks.items() if task.reused} == REUSABLE
        (stored,) = list_versions("s3://ready/versions")
        live = status(session(api)).live
    version = read_json(first[0].bundle / "manifest.json")["model_version"]
    assert stored.state == "complete" and stored.name == version_folder(version)
    assert live.stable == V1 and live.canary == Version(name=stored.name, uri=stored.uri)


DATA_STEPS = ["ingest", "validate", "materialize", "build-training-set"]


class EnoughError(Exception):
    """Ends a run from outside, at an event."""


def steps_until_training(arguments: RunArguments, work: Path) -> tuple[list[str], list[str]]:
    """Run until the first step of training begins: the steps that were reused, and those that were computed again."""
    events = Events()

    def watch(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "start" and event["stage"] in ("task/pretrain", "task/finetune"):
            raise EnoughError

    with pytest.raises(EnoughError):
        run_local(arguments, work_dir=work, state_dir=work / "state", on_event=watch)
    reused = [e["stage"].removeprefix("task/") for e in events if e["event"] == "note" and e["text"] == "reused"]
    return reused, [name for name in events.tasks("done") if name not in reused]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"recipe": "ml-100k"}, []),
        ({"seed": 5}, []),
        ({"split": "random"}, ["build-training-set"]),
        ({"test_time_mode": "off", "recipe": "ml-100k", "seed": 1}, []),
    ],
)
def test_a_change_computes_again_only_what_depends_on_it(
    first: tuple[RunResult, Events], work: Path, arguments: RunArguments, change: dict[str, Any], again: list[str]
):
    reused, computed = steps_until_training(arguments.model_copy(update=change), work)
    assert computed == again
    assert reused == [name for name in DATA_STEPS if name not in again]


@pytest.mark.long
def test_the_seed_reaches_the_steps_that_depend_on_it(tmp_path: Path):
    """The split is at random here, so the seed decides the training set; the log itself has no seed."""
    log, schema = write_log(tmp_path, rows=400)
    arguments = RunArguments(
        source="parquet", source_path=str(log), schema_path=str(schema), recipe="tiny", split="random", seed=3
    )
    steps_until_training(arguments, tmp_path / "work")
    reused, computed = steps_until_training(arguments.model_copy(update={"seed": 4}), tmp_path / "work")
    assert (reused, computed) == (["ingest", "validate", "materialize"], ["build-training-set"])
    (first, second) = sorted(
        (tmp_path / "work" / "pipeline").glob("*/build-training-set/training_set/training_set.json")
    )
    assert [read_json(path)["split"]["seed"] for path in (first, second)] == [3, 4]


def command(arguments: RunArguments, work: Path) -> list[str]:
    """The command line of the same run."""
    return [
        sys.executable, "-m", "thinktwice", "pipeline", "run", "--source", arguments.source,
        "--path", arguments.source_path, "--schema", arguments.schema_path, "--recipe", arguments.recipe,
        "--work", str(work), "--state", str(work / "state"),
    ]  # fmt: skip


def test_a_training_continues_a_bundle(first: tuple[RunResult, Events], work: Path, arguments: RunArguments):
    """From where the page says that the champion's bundle is."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^thinktwice pipeline run --continue-from (.+)$", page, re.MULTILINE)
    bundle = work / Path(line).relative_to(".thinktwice")
    continued = arguments.model_copy(update={"continue_from": str(bundle), "pretraining": "none"})
    result = run_local(continued, work_dir=work, state_dir=work / "continued")
    assert {name for name, task in result.tasks.items() if task.reused} == {"ingest", "validate", "materialize"}
    trained = read_json(Path(result.tasks["finetune"].outputs["model"]) / "training.json")
    assert trained["init"] == "continued"
    before, after = Encoder.load(first[0].bundle), Encoder.load(result.bundle)
    assert after.continues(before)
    versions = {read_json(folder / "manifest.json")["model_version"] for folder in (first[0].bundle, result.bundle)}
    assert len(versions) == 2


def test_a_refused_log_stops_the_run_with_reasons_and_a_report(tmp_path: Path):
    log, schema = write_log(tmp_path, rows=400, broken=True)
    arguments = RunArguments(source="parquet", source_path=str(log), schema_path=str(schema), recipe="tiny")
    done = subprocess.run(command(arguments, tmp_path / "work"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "refused by the validation" in done.stderr and "label" in done.stderr and "data.html" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1
    assert (tmp_path / "work" / "reports" / "data.html").is_file()
    assert read_champion(tmp_path / "work" / "state") is None
    assert not list((tmp_path / "work" / "pipeline").glob("*/materialize"))


def test_bad_input_is_one_sentence(tmp_path: Path):
    log, schema = write_log(tmp_path, rows=50)
    truncated = tmp_path / "truncated.parquet"
    truncated.write_bytes(log.read_bytes()[:300])
    arguments = RunArguments(source="parquet", source_path=str(truncated), schema_path=str(schema), recipe="tiny")
    with pytest.raises(PipelineError) as caught:
        run_local(arguments, work_dir=tmp_path / "work", state_dir=tmp_path / "state")
    message = str(caught.value)
    assert "truncated.parquet" in message and "step ingest" in message
    assert "\n" not in message and "failed with" not in message  # the step's own sentence, not a foreign error
    assert leftovers(tmp_path / "work") == []


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_stopped_run_leaves_nothing_half_written_and_can_be_run_again(tmp_path: Path):
    log, schema = write_log(tmp_path, rows=400)
    arguments = RunArguments(source="parquet", source_path=str(log), schema_path=str(schema), recipe="tiny")
    work = tmp_path / "work"
    process = subprocess.Popen(
        command(arguments, work), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        wait_for(lambda: list(work.glob("pipeline/*/validate")) or process.poll() is not None)
        time.sleep(0.5)  # into the middle of the step
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, output
    assert "Traceback" not in output and "stopped" in output
    assert not any(group_alive(group) for group in (process.pid, *groups_under(work)))
    assert leftovers(work) == []
    # The lock is free, the finished step is reused, and the run goes on from there.
    events = Events()

    def until_validation(event: dict[str, Any]) -> None:
        events.append(event)
        if event["stage"] == "task/validate" and event["event"] == "start":
            raise EnoughError

    with pytest.raises(EnoughError):
        run_local(arguments, work_dir=work, state_dir=work / "state", on_event=until_validation)
    assert any(e["stage"] == "task/ingest" and e.get("text") == "reused" for e in events)
    assert leftovers(work) == []


def groups_under(work: Path) -> list[int]:
    """Process groups with a process that was told of a file under `work`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(work).encode() in (entry / "cmdline").read_bytes():
                found.append(int((entry / "stat").read_text().rpartition(")")[2].split()[2]))
        except OSError:
            continue
    return found
