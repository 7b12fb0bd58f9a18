"""TrainJobs: what is created fits Kubeflow Trainer's definition, and the step survives an API server and a job that fail in any way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kfp import dsl

from components.training.launch_trainjob import worker
from components.training.launch_trainjob.api import Cluster, connect
from components.training.launch_trainjob.component import launch_trainjob
from components.training.launch_trainjob.folders import fetch_folder, has_result, read_result, write_result
from components.training.launch_trainjob.launch import launch, remove_jobs
from components.training.launch_trainjob.objects import JobPlacement, JobSettings, job_name, train_job
from components.training.remove_trainjobs.component import remove_trainjobs
from components.training.steps import StepResult
from pipelines.nodes import Nodes
from pipelines.profiles import S3_SECRET, S3_SECRET_KEYS, job_placement
from tests.cluster.api_process import Api, running
from tests.components.kubernetes_api import NAMESPACE
from tests.manifests import closed_schema
from tests.train.logs import build_small
from thinktwice.errors import PipelineError, StorageError
from thinktwice.models import load_model

ROOT = Path(__file__).resolve().parents[2]
PLATFORMS = [
    Nodes(),
    Nodes(platform="nvidia"),
    Nodes(platform="gke", gpu_pool="a100", spot=True, queue="team", priority="low"),
    Nodes(platform="eks", gpu_pool="gpus", cpu_pool="cpus", spot=True),
    Nodes(platform="aks", gpu_pool="gpus", spot=True, queue="team"),
]


def settings(**change: Any) -> JobSettings:
    values: dict[str, Any] = {
        "run": "run-1", "step": "finetune", "training_set": "s3://b/set", "out": "s3://b/model-trainjob", "recipe": "default",
        "seed": 0, "code_version": "0.1.0-abc", "image": "registry.example.org/train:0.1.0",
    }  # fmt: skip
    return JobSettings.model_validate(values | change)


@pytest.mark.parametrize("nodes", PLATFORMS, ids=lambda nodes: nodes.platform)
@pytest.mark.parametrize("step", ["pretrain", "finetune"])
def test_the_object_fits_the_definition(nodes: Nodes, step: str, crds: Path) -> None:
    placement = JobPlacement.model_validate(job_placement(nodes))
    job = train_job(settings(step=step, placement=placement, pretrained="s3://b/p" if step == "finetune" else ""))
    assert closed_schema.errors(job, crds) == []
    env = {entry["name"] for entry in job["spec"]["trainer"]["env"]}
    assert not any(name.startswith("PET_") for name in env), "Trainer sets those"
    assert job["spec"]["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "THINKTWICE_ACCELERATORS", "value": "1"} in job["spec"]["trainer"]["env"]
    (patch,) = job["spec"]["runtimePatches"]
    pod = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert pod["nodeSelector"]
    assert job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name", "") == nodes.queue


def test_the_job_fits_the_runtime_of_the_manifests() -> None:
    runtime = yaml.safe_load((ROOT / "manifests/components/trainer/runtime.yaml").read_text())
    job = train_job(settings())
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert node["name"] == "node" and [container["name"] for container in pod["containers"]] == ["node"]
    assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} == {"/dev/shm", "/tmp"}
    secret = {
        entry["valueFrom"]["secretKeyRef"]["name"] for entry in job["spec"]["trainer"]["env"] if "valueFrom" in entry
    }
    keys = {
        entry["valueFrom"]["secretKeyRef"]["key"] for entry in job["spec"]["trainer"]["env"] if "valueFrom" in entry
    }
    assert secret == {S3_SECRET} and keys == set(S3_SECRET_KEYS)


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300), st.integers(0, 9), st.integers(0, 9))
def test_a_name_stands_for_a_run_and_its_settings(one: str, other: str, seed: int, another: int) -> None:
    names = [job_name(settings(run=run, seed=number)) for run, number in ((one, seed), (other, another))]
    assert (names[0] == names[1]) == ((one, seed) == (other, another))
    assert all(len(name) <= 40 and name.replace("-", "").isalnum() and name.islower() for name in names)


# Against an API server.


@pytest.fixture(scope="module")
def server(crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running("tests.components.kubernetes_api", str(crds), NAMESPACE, tmp_path_factory.mktemp("kube")) as api:
        yield api


@pytest.fixture(scope="module")
def crds(shared: Path) -> Path:
    return shared / "schemas"


@pytest.fixture
def api(server: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(server.kubeconfig))
    server.control(reset=True)
    return server


@pytest.fixture
def cluster(api: Api) -> Cluster:
    connected = connect()
    connected.api.sleep = lambda _: None
    return connected


def run(cluster: Cluster, said: list[str] | None = None, wait_s: float = 1e9, **change: Any) -> str:
    return launch(settings(**change), cluster, wait_s=wait_s, tell=(said if said is not None else []).append)


def test_a_job_is_created_and_waited_for(api: Api, cluster: Cluster) -> None:
    pod = {"metadata": {"name": "tt-pod"}, "spec": {"containers": []}, "status": {}}
    api.control(
        status=[["Suspended"], [], [], ["Complete"]],
        pods=[pod],
        logs={"tt-pod": "2026-01-01T00:00:01Z epoch 1\n2026-01-01T00:00:02Z epoch 2\n"},
    )
    said: list[str] = []
    name = run(cluster, said)
    assert name == job_name(settings()) and cluster.namespace == NAMESPACE
    assert said == [
        f"TrainJob {name} in namespace {NAMESPACE}: created",
        "epoch 1",
        "epoch 2",
        f"TrainJob {name} waits in the queue",
        f"TrainJob {name} runs",
    ]
    state = api.control()
    assert list(state["jobs"]) == [name], "a finished job stays until the end of the run"


def test_a_step_that_is_tried_again_finds_its_job(api: Api, cluster: Cluster) -> None:
    api.control(status=[["Complete"]])
    assert run(cluster) == run(cluster)
    said: list[str] = []
    run(cluster, said)
    assert "found again" in said[0]
    assert len(api.control()["jobs"]) == 1
    run(cluster, run="run-2")
    run(cluster, seed=1)
    assert len(api.control()["jobs"]) == 3


def test_a_job_that_failed_is_replaced_when_the_step_is_tried_again(api: Api, cluster: Cluster) -> None:
    api.control(status=[["Failed"]])
    with pytest.raises(PipelineError, match="failed"):
        run(cluster)
    api.control(status=[["Failed"], [], ["Complete"]])
    said: list[str] = []
    name = run(cluster, said)
    assert "failed before (FailedReason: told by the test): it is deleted and created anew" in said[1]
    assert list(api.control()["jobs"]) == [name]


def test_a_failed_job_that_does_not_go_ends_the_step(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.control(status=[["Failed"]])
    with pytest.raises(PipelineError, match="failed"):
        run(cluster)
    monkeypatch.setattr(cluster, "delete", lambda _: None)  # a finalizer keeps it
    with pytest.raises(PipelineError, match="does not go: delete it and run the step again"):
        run(cluster, wait_s=-1.0)


def test_a_foreign_job_of_that_name_is_refused(api: Api, cluster: Cluster) -> None:
    job = train_job(settings())
    job["metadata"]["annotations"] = {}
    api.control(jobs={job["metadata"]["name"]: job}, status=[["Complete"]])
    with pytest.raises(PipelineError, match="is not of this step: delete it"):
        run(cluster)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("match", ["POST", "GET .*/tt-", "GET .*/pods"])
def test_a_busy_api_server_is_asked_again(api: Api, cluster: Cluster, status: int, match: str) -> None:
    api.control(faults=[{"match": match, "times": 3, "status": status}], status=[[], ["Complete"]])
    run(cluster)
    assert len(api.control()["jobs"]) == 1


@pytest.mark.parametrize("fault", [{"cut": True}, {"after": True, "status": 0}])
def test_a_connection_that_breaks_creates_no_second_job(api: Api, cluster: Cluster, fault: dict[str, Any]) -> None:
    """Before the job was created, and after it, when only the answer is lost."""
    api.control(faults=[{"match": "POST", "times": 1, **fault}], status=[["Complete"]])
    run(cluster)
    assert len(api.control()["jobs"]) == 1


def test_an_api_server_that_stays_away_ends_the_wait_and_not_the_job(api: Api, cluster: Cluster) -> None:
    api.control(faults=[{"match": "GET", "times": 10**6, "status": 503}])
    with pytest.raises(
        PipelineError, match=r"does not answer get trainjobs in namespace runs \(503.*finds the TrainJob again"
    ):
        run(cluster)
    api.control(faults=[], status=[["Complete"]])
    assert len(api.control()["jobs"]) == 1
    run(cluster)


REFUSED = [
    (
        403,
        'trainjobs.trainer.kubeflow.org is forbidden: User "x" cannot create resource',
        r"may not create trainjobs .*verbs: \[create\]",
    ),
    (403, "exceeded quota: gpus, requested: 1, used: 4, limited: 4", "no quota left"),
    (401, "Unauthorized", "does not accept the credentials"),
    (404, "404 page not found", "install Kubeflow Trainer"),
    (404, 'namespaces "runs" not found', "namespace runs does not exist"),
    (
        400,
        'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: no runtime',
        "denied the request: no runtime",
    ),
    (422, "spec.trainer.numNodes: Invalid value", "numNodes: Invalid value"),
]


@pytest.mark.parametrize(("status", "message", "said"), REFUSED)
def test_a_refusal_is_a_sentence(api: Api, cluster: Cluster, status: int, message: str, said: str) -> None:
    api.control(faults=[{"match": "POST", "times": 9, "status": status, "message": message}])
    with pytest.raises(PipelineError, match=said) as raised:
        run(cluster)
    assert "\n" not in str(raised.value) and len([seen for seen in api.control()["seen"] if seen[0] == "POST"]) == 1


def test_an_object_with_a_wrong_field_is_refused_by_the_server(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = train_job(settings())
    job["spec"]["podSpecOverrides"] = []
    monkeypatch.setattr("components.training.launch_trainjob.launch.train_job", lambda _: job)
    with pytest.raises(PipelineError, match="podSpecOverrides"):
        run(cluster)


def test_a_failed_job_tells_why(api: Api, cluster: Cluster) -> None:
    name = job_name(settings())
    ended = {"name": "node", "image": "", "imageID": "", "ready": False, "restartCount": 0}
    ended["state"] = {"terminated": {"exitCode": 1, "reason": "Error"}}
    waiting = {**ended, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    pods = [
        {"metadata": {"name": f"{name}-0"}, "spec": {"containers": []}, "status": {"containerStatuses": [ended]}},
        {"metadata": {"name": f"{name}-1"}, "spec": {"containers": []}, "status": {"containerStatuses": [waiting]}},
    ]
    event = {
        "metadata": {"name": "e"},
        "involvedObject": {"name": f"{name}-0"},
        "reason": "FailedScheduling",
        "message": "no GPU left",
    }
    logs = {f"{name}-0": "2026-01-01T00:00:01Z 1 GPU(s) were promised to this step and 0 are usable\n"}
    api.control(status=[[], ["Failed"]], pods=pods, events=[event], logs=logs)
    with pytest.raises(PipelineError) as raised:
        run(cluster)
    for text in (
        "FailedReason: told by the test",
        "FailedScheduling: no GPU left",
        "exit 1",
        "ImagePullBackOff",
        "promised to this step",
    ):
        assert text in str(raised.value)


def test_a_pod_that_waits_says_why_once(api: Api, cluster: Cluster) -> None:
    name = job_name(settings())
    container = {"name": "node", "image": "", "imageID": "", "ready": False, "restartCount": 0}
    pull = {**container, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    starts = {**container, "state": {"waiting": {"reason": "ContainerCreating"}}}
    unplaced = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes have a GPU"}
    states = [{"containerStatuses": [pull]}, {"containerStatuses": [starts]}, {"conditions": [unplaced]}]
    pods = [{"metadata": {"name": f"{name}-{n}"}, "spec": {}, "status": status} for n, status in enumerate(states)]
    api.control(status=[[], [], [], ["Complete"]], pods=pods)
    said: list[str] = []
    run(cluster, said)
    assert [line for line in said if line.startswith(f"{name}-")] == [
        f"{name}-0: ImagePullBackOff: no such image",
        f"{name}-2: no node yet (0/3 nodes have a GPU)",
    ]


def test_a_deadline_deletes_the_job(api: Api, cluster: Cluster) -> None:
    api.control(status=[["Suspended"]])
    with pytest.raises(PipelineError, match="waits in the queue and is not complete after 0 s, so it was deleted"):
        run(cluster, wait_s=0.0)
    assert api.control()["jobs"] == {}


def test_a_job_that_somebody_deletes(api: Api, cluster: Cluster) -> None:
    api.control(status=[[], "gone"])
    with pytest.raises(PipelineError, match="was deleted while it ran"):
        run(cluster)


def test_the_exit_handler_removes_the_jobs_of_its_run_alone(api: Api, cluster: Cluster) -> None:
    api.control(status=[["Complete"]])
    for change in ({}, {"seed": 1}, {"run": "run-2"}):
        run(cluster, **change)
    said: list[str] = []
    remove_jobs("run-1", cluster, said.append)
    assert len(said) == 2 and list(api.control()["jobs"]) == [job_name(settings(run="run-2"))]
    remove_jobs("run-1", cluster, said.append)
    assert len(said) == 2


def test_every_call_is_in_the_role(api: Api, cluster: Cluster) -> None:
    role = yaml.safe_load((ROOT / "manifests/components/trainer-access/role.yaml").read_text())
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    name = job_name(settings())
    pod = {"metadata": {"name": f"{name}-0"}, "spec": {"containers": []}, "status": {}}
    api.control(status=[["Failed"]], pods=[pod], logs={f"{name}-0": "2026 x"})
    with pytest.raises(PipelineError):
        run(cluster)
    remove_jobs("run-1", cluster, lambda _: None)
    made = set()
    for method, path in api.control()["seen"]:
        path = path.split("?")[0]
        resource = (
            "pods/log" if path.endswith("/log") else next(r for r in ("trainjobs", "pods", "events") if f"/{r}" in path)
        )
        single = path.rstrip("/").split("/")[-1] not in ("trainjobs", "pods", "events")
        made.add((resource, {"POST": "create", "DELETE": "delete", "GET": "get" if single else "list"}[method]))
    assert made == allowed


def test_without_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(PipelineError, match="KUBECONFIG"):
        connect()


# What the pods write.

RESULT = StepResult(metadata={"recipe": "tiny"}, metrics={"valid_auc": 0.7})


def model(folder: Path, text: str = "weights") -> Path:
    folder.mkdir()
    (folder / "weights.safetensors").write_text(text)
    (folder / "model.json").write_text("{}")
    return folder


def test_the_first_attempt_that_finishes_is_the_result(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert not has_result(out)
    with pytest.raises(PipelineError, match="no result"):
        read_result(out, tmp_path / "early")
    assert write_result(out, model(tmp_path / "one", "first"), RESULT)
    assert not write_result(out, model(tmp_path / "two", "second"), RESULT)
    assert has_result(out) and read_result(out, tmp_path / "read") == RESULT
    assert (tmp_path / "read" / "weights.safetensors").read_text() == "first"
    assert {path.name for path in (tmp_path / "read").iterdir()} == {"weights.safetensors", "model.json"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: next(out.glob("*/weights.safetensors")).write_text("other"),
        lambda out: next(out.glob("*/weights.safetensors")).unlink(),
        lambda out: (out / "result.json").write_text("{}"),
        lambda out: (out / "result.json").write_text(
            (out / "result.json").read_text().replace("model.json", "../x.json")
        ),
    ],
)
def test_a_damaged_result_is_refused(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    write_result(str(tmp_path / "out"), model(tmp_path / "one"), RESULT)
    damage(tmp_path / "out")
    with pytest.raises(Exception, match=r"damaged|missing|not a file name|cannot be read|instead of"):
        read_result(str(tmp_path / "out"), tmp_path / "read")


def test_a_training_set_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StorageError, match="contains nothing"):
        fetch_folder(str(tmp_path / "none"), tmp_path / "x")
    words = [
        "--step",
        "pretrain",
        "--training-set",
        str(tmp_path / "none"),
        "--out",
        str(tmp_path / "out"),
        "--recipe",
        "tiny",
        "--seed",
        "0",
    ]
    assert worker.main(words) == 1 and "contains nothing" in capsys.readouterr().err


def test_a_pod_without_its_gpu_ends_before_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THINKTWICE_ACCELERATORS", "1")
    words = [
        "--step",
        "pretrain",
        "--training-set",
        str(tmp_path / "none"),
        "--out",
        str(tmp_path / "out"),
        "--recipe",
        "tiny",
        "--seed",
        "0",
    ]
    assert worker.main(words) == 1
    assert "1 GPU(s) were promised to this step and 0 are usable" in capsys.readouterr().err


def test_the_pods_of_a_job_train_and_the_step_takes_over(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real training, and a folder in place of the object store; what the job would run is run here."""
    data = build_small(tmp_path / "training_set", rows=1500)
    api.control(status=[["Complete"]])
    training_set, model_ = dsl.Dataset(uri=str(data)), dsl.Model(uri=str(tmp_path / "pretrained"))
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    inputs: dict[str, Any] = {
        "training_set": training_set, "training_step": "pretrain", "recipe": "tiny", "seed": 3, "code_version": "1",
        "run_id": "run-1", "image": "x:1.0.0", "placement": {"gpus": 0}, "model": model_, "metrics": metrics,
    }  # fmt: skip
    with pytest.raises(PipelineError, match="no result"):
        launch_trainjob.python_func(**inputs)
    (job,) = api.control()["jobs"].values()
    assert worker.main(job["spec"]["trainer"]["args"]) == 0
    assert worker.main(job["spec"]["trainer"]["args"]) == 0, "a pod that is started again"
    launch_trainjob.python_func(**inputs)
    assert load_model(model_.path)[1].stage == "pretrained"
    assert model_.metadata["seed"] == 3 and metrics.metadata["label_logloss"] > 0
    assert len(api.control()["jobs"]) == 1
    remove_trainjobs.python_func(run_id="run-1")
    assert api.control()["jobs"] == {}
