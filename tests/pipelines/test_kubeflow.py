"""``pipeline submit``, ``schedule`` and ``upload`` against a server that speaks KFP's API, with KFP's own client."""

import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kfp import Client, dsl

from pipelines import kubeflow
from pipelines.arguments import RunArguments
from pipelines.compile import BUILDERS, SCHEDULED, compile_pipeline, compiled
from pipelines.kubeflow import check_parameters, checked_cron, connect
from pipelines.nodes import Nodes
from pipelines.profiles import (
    CPU_SIZE,
    DAY,
    DEADLINE,
    LAUNCH_SIZE,
    ONLINE_SECRET,
    PROFILES,
    RETRIES,
    S3_SECRET,
    SPOT_RETRIES,
    STATE_CLAIM,
    TRAIN_SIZE,
    TTL_FAILURE,
    TTL_SUCCESS,
)
from tests.pipelines import ir
from tests.pipelines.kubeflow_server import Server, running
from tests.storage.servers import free_ports
from thinktwice.cli import main
from thinktwice.errors import PipelineError

pytestmark = pytest.mark.server

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kubeflow.md"
LOG = ["--source", "log", "--path", "s3://clicks/2024/", "--schema", "s3://clicks/shop.yaml"]
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


CANARY = ["--serving-namespace", "ads", "--model-storage", "s3://models/ctr"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's keys nor an object store: what is at s3:// cannot be seen."""
    for name, value in NO_KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", "/dev/null/context.json")


def call(*words: str, server: Server | None = None) -> int:
    host = [] if server is None else ["--host", server.address]
    return main(["pipeline", words[0], *host, "--profile", "cpu-pool", *words[1:]])


def test_a_run_of_ones_own_log(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("submit", *LOG, "--recipe", "tiny", "--since", "2024-03-01", server=server) == 0
    shown = capsys.readouterr()
    page = re.search(rf"{server.address}/#/runs/details/(\S+)", shown.out)
    assert page and "cannot be checked from here" in shown.out + shown.err
    run = server.objects("runs")[page[1]]
    given = run["runtime_config"]["parameters"]
    assert given["source_path"] == "s3://clicks/2024/" and given["recipe"] == "tiny" and given["since"] == "2024-03-01"
    assert given["data_version"].startswith("unseen-") and given["code_version"].startswith("0.")
    assert not {"target", "state_dir"} & set(given)  # the profile's defaults
    version = server.objects("versions")[run["pipeline_version_reference"]["pipeline_version_id"]]
    assert re.fullmatch(r"ctr-training-[0-9-]+-cpu-pool-[0-9a-f]{8}", version["display_name"])
    kinds = ("versions", "pipelines", "experiments", "runs")
    before = [len(server.objects(kind)) for kind in kinds]
    assert call("submit", *LOG, server=server) == 0  # another run of the version that is there
    assert [len(server.objects(kind)) for kind in kinds] == [*before[:3], before[3] + 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = Client(host=server.address)
        assert client.get_run(page[1]).display_name == run["display_name"]
        client.pipelines.api_client.rest_client.pool_manager.clear()


@pytest.mark.parametrize("line", re.findall(r"^thinktwice .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
def test_the_documented_commands(
    line: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (nodes,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "nodes.yaml").write_text(nodes)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.replace("http://localhost:8080", server.address))[1:]
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


def test_the_page_names_what_is_set() -> None:
    text = PAGE.read_text(encoding="utf-8")
    hours = [int(size[3] / 3600) for size in (CPU_SIZE, TRAIN_SIZE, LAUNCH_SIZE)]
    assert "of a step {} h, of training {} h, of a TrainJob and its queue {} h".format(*hours) in text
    assert f"of a run {DEADLINE['cpu-pool'] // DAY} days, with TrainJobs {DEADLINE['gpu-trainjob'] // DAY} days" in text
    assert f"{TTL_SUCCESS // DAY} days after success, {TTL_FAILURE // DAY} days after failure" in text
    assert f"{RETRIES} ({SPOT_RETRIES} on spot nodes)" in text
    assert all(f"`{name}`" in text for name in {*ir.EFFECTS, ir.REMOVAL, STATE_CLAIM, S3_SECRET, ONLINE_SECRET})


def named(server: Server, name: str) -> dict[str, dict[str, Any]]:
    """The schedules of this name."""
    return {key: value for key, value in server.objects("recurringruns").items() if value["display_name"] == name}


def test_a_schedule_has_its_time_as_cut_off_and_is_changed_in_place(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["schedule", *LOG, "--cron", "0 3 * * *", "--name", "nightly"]
    assert call(*words, server=server) == 0
    first = capsys.readouterr().out.split()[-1]
    made = named(server, "nightly")[first]
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert made["no_catchup"] is True and int(made["max_concurrency"]) == 1 and made["mode"] == "ENABLE"
    spec = server.objects("versions")[made["pipeline_version_reference"]["pipeline_version_id"]]["pipeline_spec"]
    until = ir.tasks(spec)["ingest"]["inputs"]["parameters"]["until"]
    assert until == {"runtimeValue": {"constant": dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER}}
    assert "until" not in made["runtime_config"]["parameters"]

    assert call(*words, server=server) == 0
    shown = capsys.readouterr().out
    assert "nightly kept" in shown and list(named(server, "nightly")) == [first]
    assert call(*words, "--seed", "2", server=server) == 0
    shown = capsys.readouterr().out
    (second,) = named(server, "nightly")
    assert "nightly replaced" in shown and second != first and shown.split()[-1] == second

    # The new one is created before the old one goes: a failure between leaves two, and a repetition one.
    server.plan(["DELETE", "recurringruns", 503, 1])
    assert call(*words, "--seed", "3", server=server) == 1
    assert "an earlier schedule nightly is still there; run this again" in capsys.readouterr().err
    assert len(named(server, "nightly")) == 2
    assert call(*words, "--seed", "3", server=server) == 0
    (third,) = named(server, "nightly").values()
    assert third["runtime_config"]["parameters"]["seed"] == 3


def test_many_schedules_of_one_name_are_found_on_every_page(server: Server) -> None:
    with connect(server.address) as found, compiled("cpu-pool", scheduled=True) as pipeline:
        version = found.upload(pipeline)
        kept = found.schedule(version, "pages", "daily", "0 0 3 * * *", {"source": "sim"}, "")
        client = found.client
        experiment = client.get_experiment(experiment_name="pages").experiment_id
        for number in range(kubeflow.PAGE + 5):
            client.create_recurring_run(
                experiment,
                "daily",
                cron_expression=f"0 {number % 60} 1 * * *",
                params={},
                pipeline_id=version.pipeline_id,
                version_id=version.version_id,
            )
        again = found.schedule(version, "pages", "daily", "0 0 3 * * *", {"source": "sim"}, "")
        left = {k: v for k, v in server.objects("recurringruns").items() if v["experiment_id"] == experiment}
    assert again == (kept.recurring_run_id, "replaced") and list(left) == [kept.recurring_run_id]


@pytest.mark.parametrize("pipeline", BUILDERS)
def test_an_upload_may_be_repeated(pipeline: str, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(server.objects("versions"))
    words = ["upload", "--pipeline", pipeline, "--image", "registry.example.com/python:upload"]
    assert call(*words, server=server) == 0 and "uploaded" in capsys.readouterr().out
    assert call(*words, server=server) == 0
    shown = capsys.readouterr().out
    assert "is there already" in shown and len(server.objects("versions")) == before + 1
    assert re.search(r"/#/pipelines/details/pipelines-\d+/version/versions-\d+", shown)


def test_two_uploads_of_one_version_are_one(server: Server) -> None:
    """The other one wins between our look and our upload: 409 is not an error then."""
    with compiled("cpu-pool", image="registry.example.com/python:race") as pipeline, connect(server.address) as first:
        with connect(server.address) as second:
            missed = iter([""])
            looked = second._version
            second._version = lambda *given: next(missed, None) or looked(*given)  # type: ignore[method-assign]
            made = first.upload(pipeline)
            assert made.created and second.upload(pipeline) == made._replace(created=False)


FAULTS: list[tuple[int, str, str]] = [
    (401, "healthz", "does not know who asks .*THINKTWICE_KFP_TOKEN"),
    (403, "experiments", "denies access .*namespace"),
    (404, "healthz", "does not have what was asked for .*check --host"),
    (409, "experiments", "already has another object of this name"),
    (400, "/runs", "does not accept the request .*told by the test.*no run was started"),
    (429, "pipelines", "cannot answer now"),
    (500, "/runs", "cannot answer now .*no run was started"),
    (502, "healthz", "cannot answer now"),
    (503, "upload_version", "cannot answer now .*was not uploaded"),
    (200, "healthz", "answers with a page and not with the API"),
    (200, "pipelines", "in another form than Kubeflow Pipelines 2"),
]


@pytest.mark.parametrize(("status", "part", "message"), FAULTS)
def test_refusals_are_one_sentence(
    status: int,
    part: str,
    message: str,
    server: Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THINKTWICE_KFP_TOKEN", "a-token-of-somebody")
    server.plan(*([method, part, status, -1] for method in ("GET", "POST")))
    before = server.objects("runs")
    try:
        code = call(
            "submit",
            "--source",
            "sim",
            "--limit",
            "100",
            "--experiment",
            f"e{status}",
            "--image",
            f"x/python:{status}",
            server=server,
        )
    finally:
        server.plan()
    told = capsys.readouterr().err.strip().splitlines()
    assert code == 1 and len(told) == 1 and re.search(message, told[0]), told
    assert server.address in told[0] and "Traceback" not in told[0] and "a-token" not in told[0]
    assert server.objects("runs") == before


def test_a_host_that_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeflow, "TIMEOUTS_S", (0.5, 0.5))
    (port,) = free_ports(1)
    for host, message in (
        (f"http://127.0.0.1:{port}", "cannot be reached"),
        ("kubeflow", "is not an address"),
        ("ftp://kubeflow", "is not an address"),
        ("http://user:secret@kubeflow", "is not an address"),
        ("http://127.0.0.1:99999", "is not an address|in another form"),
    ):
        assert main(["pipeline", "upload", "--host", host, "--profile", "cpu-pool"]) == 1
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1 and re.search(message, told[0]) and "secret" not in told[0], told


def test_a_host_that_never_answers(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubeflow, "TIMEOUTS_S", (0.5, 0.5))
    server.plan(["GET", "healthz", 0, 1], ["POST", "/runs", 0, 1])
    try:
        for _ in range(2):
            assert call("submit", "--source", "sim", server=server) == 1
            assert "does not answer in time" in capsys.readouterr().err
    finally:
        server.plan()
    assert sum(seen["method"] == "POST" and seen["path"].endswith("/runs") for seen in server.seen()[-6:]) == 1  # once


def test_a_server_with_users(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running("--multi-user", "--token", "right-token") as server:
        assert call("submit", "--source", "sim", server=server) == 1
        assert "does not know who asks" in capsys.readouterr().err
        monkeypatch.setenv("THINKTWICE_KFP_TOKEN", "right-token")
        assert call("submit", "--source", "sim", server=server) == 1
        assert "give --namespace" in capsys.readouterr().err
        assert (
            call("submit", "--source", "sim", "--namespace", "ads", "--service-account", "trainer", server=server) == 0
        )
        assert {e["namespace"] for e in server.objects("experiments").values()} == {"ads"}
        assert [run["service_account"] for run in server.objects("runs").values()] == ["trainer"]
        monkeypatch.delenv("THINKTWICE_KFP_TOKEN")
        (tmp_path / "token").write_text("right-token")  # as in a pod
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
        assert call("upload", "--namespace", "ads", server=server) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--source", "log", "--path", "logs/x.csv", "--schema", "s3://bkt/s.yaml"],
            "is on this machine, and steps in a cluster",
        ),
        (
            ["--source", "log", "--path", "s3://bkt/x.csv", "--schema", "s.yaml"],
            "is on this machine, and steps in a cluster",
        ),
        (
            ["--source", "log", "--path", "https://bkt/x.csv", "--schema", "s3://bkt/s.yaml"],
            "is not an object or a folder",
        ),
        (["--source", "parquet", "--path", "s3://bkt/x"], "source 'parquet' reads files of this machine"),
        (["--source", "sim", "--online-store", "redis", "--redis-address", "r:6379,password=x"], "options of Redis"),
        (["--source", "sim", "--online-store", "redis"], "needs the address of the server"),
        (["--source", "sim", "--serving-namespace", "ads"], "give --model-storage s3://BUCKET/FOLDER$"),
        (["--source", "sim", "--model-storage", "s3://m/ctr"], "give --serving-namespace too"),
        (["--source", "sim", "--serving-namespace", "My_Ads", *CANARY[2:]], "is not the name of a namespace"),
        (["--source", "sim", *CANARY[:2], "--model-storage", "/tmp/m"], "is not a folder of an object store"),
        (["--source", "sim", "--profile", "local"], "runs here"),
        (["--source", "sim", "--window-days", "2"], "belongs to --pipeline features"),
        (["--source", "sim", "--pipeline", "features", "--recipe", "tiny"], "trains no model, so it has no recipe"),
    ],
)
def test_arguments_that_no_cluster_can_use(
    words: list[str], message: str, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    before = server.objects("runs")
    assert call("submit", *words, server=server) == 1
    assert re.search(message, capsys.readouterr().err) and server.objects("runs") == before


def test_no_secret_is_a_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hunter2hunter2"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "THINKTWICE_REDIS_PASSWORD", "THINKTWICE_KFP_TOKEN"):
        with pytest.raises(PipelineError, match=f"the value of {name}") as caught:
            check_parameters({"source_path": f"s3://bkt/{secret}/x"}, {name: secret})
        assert secret not in str(caught.value)
    check_parameters({"source_path": "s3://bkt/x", "redis_address": "redis:6379"}, {"AWS_SECRET_ACCESS_KEY": secret})
    with pytest.raises(PipelineError, match="bytes, and Kubeflow"):
        check_parameters({"source_path": "s3://bucket/x\n" * 1000})


@given(st.lists(st.sampled_from(["0", "*", "*/5", "1-5", "MON", "1,2", "?"]), min_size=1, max_size=8))
def test_a_cron_expression_has_six_fields(fields: list[str]) -> None:
    if len(fields) in (5, 6):
        assert checked_cron(" ".join(fields)).split() == (fields if len(fields) == 6 else ["0", *fields])
    else:
        with pytest.raises(PipelineError, match="is not a cron expression"):
            checked_cron(" ".join(fields))


@pytest.mark.long
def test_a_version_has_another_name_exactly_if_its_spec_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_one(image: str = "a/python:1", queue: str = "", scheduled: bool = False) -> tuple[str, str]:
        with compiled("gpu-single", image=image, nodes=Nodes(queue=queue), scheduled=scheduled) as pipeline:
            return pipeline.version, pipeline.file.read_text()

    found = [compile_one(), compile_one(image="a/python:2"), compile_one(queue="ads"), compile_one(scheduled=True)]
    monkeypatch.setattr("pipelines.profiles.TTL_SUCCESS", 1)
    found.append(compile_one())
    monkeypatch.undo()
    assert len(dict(found)) == len({text for _, text in found}) == len(found)
    assert compile_one() == found[0]


def test_the_objects_for_kubectl_have_the_name_of_the_version(tmp_path: Path) -> None:
    compile_pipeline("cpu-pool", tmp_path / "x.yaml", kubernetes_manifest=True, scheduled=True)
    with compiled("cpu-pool", scheduled=True) as pipeline:
        names = {(o["kind"], o["metadata"]["name"]) for o in yaml.safe_load_all((tmp_path / "x.yaml").read_text())}
        assert names == {("Pipeline", pipeline.name), ("PipelineVersion", pipeline.version)}
    assert len(pipeline.version) <= 63


@pytest.mark.parametrize("profile", [p for p in PROFILES if p != "local"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_run_has_its_times_and_every_task_its_own(profile: Any, scheduled: bool) -> None:
    with compiled(profile, scheduled=scheduled) as pipeline:
        spec, platform = yaml.safe_load_all(pipeline.file.read_text())
        _, kubernetes = ir.load(pipeline.file)
    config = platform["platforms"]["kubernetes"]["pipelineConfig"]
    assert config == {
        "resourceTtlOnSuccess": TTL_SUCCESS,
        "resourceTtlOnFailure": TTL_FAILURE,
        "activeDeadlineSeconds": DEADLINE[profile],
    }
    for name, task in ir.tasks(spec).items():
        assert ir.is_cached(task) is (name not in ir.NEVER_CACHED), name
        assert ("retryPolicy" in task) is (name not in {*ir.EFFECTS, ir.CANARY}), name
        assert 0 < int(kubernetes[name]["activeDeadlineSeconds"]) < DEADLINE[profile], name
    assert ("comp-exit-handler-1" in spec["components"]) is (profile == "gpu-trainjob")


def test_the_parameters_of_a_run_are_those_of_the_graph() -> None:
    given = RunArguments(source="sim").parameters("c", "d")
    for build in (BUILDERS["training"][1], SCHEDULED["training"]):
        known = set(build("cpu-pool", "a/python", Nodes()).pipeline_spec.root.input_definitions.parameters)
        assert set(given) == known - {"state_dir"}


def test_the_server_is_one_for_the_clients_own_methods(server: Server, tmp_path: Path) -> None:
    """What the tests rely on is KFP's client and not our calls of it."""

    @dsl.component(base_image="python:3.11")
    def add(a: int, b: float) -> float:
        return a + b

    @dsl.pipeline(name="sum")
    def total(a: int, b: float = 1.0) -> None:
        add(a=a, b=b)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = Client(host=server.address)
        assert client.upload_pipeline_from_pipeline_func(total, "sum").display_name == "sum"
        with pytest.raises(Exception, match="409"):
            client.upload_pipeline_from_pipeline_func(total, "sum")
        run = client.create_run_from_pipeline_func(total, {"a": 1})
        assert client.get_run(run.run_id).run_id == run.run_id
        for wrong in ({}, {"a": "x"}, {"a": 1, "c": 2}):
            with pytest.raises(Exception, match="400"):
                client.create_run_from_pipeline_func(total, wrong)
        client.pipelines.api_client.rest_client.pool_manager.clear()
