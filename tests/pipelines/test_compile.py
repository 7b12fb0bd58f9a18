"""The pipeline compiles for every profile, and the compiled file says what the profile promises."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

import pipelines
from components.step import IMAGE
from components.training.launch_trainjob.objects import JobSettings, train_job
from pipelines.compile import compile_pipeline
from pipelines.ctr_training import build_pipeline
from pipelines.nodes import ACCELERATORS, GPU_RESOURCE, POOL_LABEL, Nodes, cpu_nodes, load_nodes, queue_labels
from pipelines.profiles import (
    ONLINE_SECRET,
    PROFILES,
    REGISTRY_SECRET,
    S3_SECRET,
    S3_SECRET_KEYS,
    STATE_CLAIM,
    STATE_MOUNT,
    job_placement,
)
from tests.manifests import closed_schema
from tests.pipelines import ir
from thinktwice.cli import main

ROOT = Path(pipelines.__path__[0]).parent
GOLDEN = ROOT / "pipelines" / "golden"


@pytest.fixture(scope="module", params=PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def compiled(profile: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compiled") / f"{profile}.yaml"
    compile_pipeline(profile, out)
    return out


@pytest.fixture(scope="module")
def on_gpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compiled") / "gpu.yaml"
    compile_pipeline("gpu-single", out)
    return out


def test_the_compiled_file_is_the_one_in_the_repository(profile: str, compiled: Path):
    golden = GOLDEN / f"{profile}.yaml"
    regenerate = f"thinktwice pipeline compile --profile {profile} --out pipelines/golden/{profile}.yaml"
    assert compiled.read_text() == golden.read_text(), f"the graph changed: look at the difference, then `{regenerate}`"


def test_every_task_is_there_once(compiled: Path, profile: str):
    spec, _ = ir.load(compiled)
    assert set(ir.tasks(spec)) == ir.tasks_of(profile)
    assert set(ir.containers(spec)) == ir.tasks_of(profile)


def test_nothing_is_installed_at_run_time(compiled: Path):
    spec, _ = ir.load(compiled)
    for name, container in ir.containers(spec).items():
        text = "\n".join([*container["command"], *container.get("args", [])])
        assert "pip" not in text.split() and "pip install" not in text, name
        assert container["image"] == IMAGE, name


def test_every_step_runs_in_the_image_of_ones_own_registry(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, own = tmp_path / "own.yaml", "registry.example.com/ads/thinktwice-python:7"
    assert main(["pipeline", "compile", "--out", str(out), "--image", own]) == 0
    spec, kubernetes = ir.load(out)
    assert set(ir.containers(spec)) == set(kubernetes) == ir.GRAPH
    assert {container["image"] for container in ir.containers(spec).values()} == {own}
    assert IMAGE not in out.read_text()


def test_the_image_lets_the_local_runner_recognize_python():
    assert "python" in IMAGE


def test_steps_that_read_data_know_nothing_of_the_training(compiled: Path):
    """Another recipe, split or training seed must not change the cache key of a step that does not depend on it."""
    spec, _ = ir.load(compiled)
    inputs = {
        name: set(str(task["inputs"]["parameters"]).replace("pipelinechannel--", "").split("'"))
        for name, task in ir.tasks(spec).items()
    }
    for name in ("ingest", "validate", "materialize"):
        assert not inputs[name] & {"recipe", "split", "split_seed", "test_time_mode"}, name
    assert "data_seed" in inputs["ingest"]
    assert {"split", "split_seed"} <= inputs["build-training-set"] and "recipe" not in inputs["build-training-set"]
    assert {"recipe", "test_time_mode"} <= inputs["evaluate"]  # which names the model


def test_steps_with_effects_are_not_cached_and_all_others_are(compiled: Path):
    spec, _ = ir.load(compiled)
    for name, task in ir.tasks(spec).items():
        assert ir.is_cached(task) is (name not in ir.NEVER_CACHED), name


def test_no_step_that_is_cached_has_an_input_of_its_own_run(compiled: Path):
    """KFP's cache key contains the values of the parameters: with one that no other run has, the cache would never be used."""
    spec, _ = ir.load(compiled)
    own = {
        name for name, task in ir.tasks(spec).items() if re.search(r"\{\{\$\.pipeline_(job|task)_", str(task["inputs"]))
    }
    assert own <= ir.NEVER_CACHED and own & {*ir.LAUNCHES, ir.REMOVAL} == set(ir.tasks(spec)) & {
        *ir.LAUNCHES,
        ir.REMOVAL,
    }


def test_every_cached_step_knows_the_version_of_the_code(compiled: Path):
    spec, _ = ir.load(compiled)
    for name, task in ir.tasks(spec).items():
        assert "code_version" in task["inputs"]["parameters"] or name == ir.REMOVAL, name


def test_ingest_knows_the_version_of_its_files(compiled: Path):
    spec, _ = ir.load(compiled)
    assert "data_version" in ir.tasks(spec)["ingest"]["inputs"]["parameters"]


def test_gates_hold_back_what_lies_behind_them(compiled: Path):
    spec, _ = ir.load(compiled)
    components = spec["components"]
    first = components["comp-exit-handler-1"] if "comp-exit-handler-1" in components else spec["root"]
    assert {"ingest", "validate"} == {n for n in first["dag"]["tasks"] if not n.startswith("condition")}
    behind = {
        frozenset(n for n in c["dag"]["tasks"] if not n.startswith("condition"))
        for c in spec["components"].values()
        if "dag" in c
    }
    assert frozenset({"package", "deploy"}) in behind and {frozenset({"challenge"}), frozenset({ir.CANARY})} <= behind
    conditions = [
        task["triggerPolicy"]["condition"]
        for dag in [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
        for task in dag["tasks"].values()
        if "condition" in task.get("triggerPolicy", {})
    ]
    assert len(conditions) == 4
    assert any("challenger'] != ''" in c for c in conditions)
    assert any("serving_namespace'] != ''" in c for c in conditions)
    assert any("validate-Output'] == true" in c for c in conditions)
    assert any("bless-Output'] == true" in c for c in conditions)


def test_the_local_profile_sets_nothing_a_local_run_would_ignore(tmp_path: Path):
    compile_pipeline("local", tmp_path / "local.yaml")
    spec, kubernetes = ir.load(tmp_path / "local.yaml")
    assert not kubernetes
    for name, container in ir.containers(spec).items():
        assert "resources" not in container, name
    for name, task in ir.tasks(spec).items():
        assert "retryPolicy" not in task, name


def test_training_lands_on_gpus_and_everything_else_does_not(on_gpus: Path):
    spec, kubernetes = ir.load(on_gpus)
    for name, container in ir.containers(spec).items():
        accelerator = container["resources"].get("accelerator")
        settings = kubernetes[name]
        if name in ir.TRAINING_TASKS:
            assert accelerator["resourceType"] == GPU_RESOURCE and accelerator["resourceCount"] == "1", name
            assert {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"} in settings["tolerations"], name
            assert settings["nodeSelector"]["labels"] == {POOL_LABEL: "gpu"}, name
            (memory,) = settings["emptyDirMounts"]
            assert memory["mountPath"] == "/dev/shm" and memory["medium"] == "Memory" and memory["sizeLimit"], name
        else:
            assert accelerator is None, name
            assert "tolerations" not in settings and "emptyDirMounts" not in settings, name
            assert settings["nodeSelector"]["labels"] == {POOL_LABEL: "cpu"}, name


PLATFORMS = {
    "nvidia": (Nodes(platform="nvidia"), {"nvidia.com/gpu.present": "true"}, {GPU_RESOURCE}),
    "gke": (
        Nodes(platform="gke", gpu_pool="l4", cpu_pool="cpus", spot=True, queue="team", priority="low"),
        {"cloud.google.com/gke-nodepool": "l4", "cloud.google.com/gke-spot": "true"},
        {GPU_RESOURCE, "cloud.google.com/gke-spot"},
    ),
    "eks": (
        Nodes(platform="eks", gpu_pool="gpus", spot=True),
        {"karpenter.sh/nodepool": "gpus", "karpenter.sh/capacity-type": "spot"},
        {GPU_RESOURCE},
    ),
    "aks": (
        Nodes(platform="aks", gpu_pool="gpus", spot=True),
        {"kubernetes.azure.com/agentpool": "gpus", "kubernetes.azure.com/scalesetpriority": "spot"},
        {GPU_RESOURCE, "sku", "kubernetes.azure.com/scalesetpriority"},
    ),
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_training_lands_on_the_pool_of_the_platform(platform: str, tmp_path: Path):
    nodes, selector, taints = PLATFORMS[platform]
    compile_pipeline("gpu-single", tmp_path / "p.yaml", nodes=nodes)
    spec, kubernetes = ir.load(tmp_path / "p.yaml")
    for name, settings in kubernetes.items():
        if name in ir.TRAINING_TASKS:
            assert settings["nodeSelector"]["labels"] == selector
            assert {toleration["key"] for toleration in settings["tolerations"]} == taints
            assert settings.get("podMetadata", {}).get("labels", {}) == queue_labels(nodes)
            retries = ir.tasks(spec)[name]["retryPolicy"]["maxRetryCount"]
            assert retries == (6 if nodes.spot else 2)
            env = {e["name"]: e["value"] for e in ir.containers(spec)[name]["env"]}
            assert env == {ACCELERATORS: "1"}
        else:
            assert "tolerations" not in settings
            assert settings.get("nodeSelector", {}).get("labels", {}) == cpu_nodes(nodes).selector


@pytest.mark.parametrize("profile_of_one", ["cpu-pool", "gpu-trainjob"])
def test_no_step_of_its_own_asks_for_a_gpu(profile_of_one: str, tmp_path: Path):
    compile_pipeline(profile_of_one, tmp_path / "p.yaml", nodes=Nodes())
    spec, kubernetes = ir.load(tmp_path / "p.yaml")
    for name, container in ir.containers(spec).items():
        assert "accelerator" not in container["resources"] and "env" not in container, name
        assert "tolerations" not in kubernetes[name], name
        assert kubernetes[name]["nodeSelector"]["labels"] == {POOL_LABEL: "cpu"}, name


def test_trainjobs_get_the_placement_and_are_removed_at_the_end(tmp_path: Path):
    nodes = PLATFORMS["gke"][0]
    compile_pipeline("gpu-trainjob", tmp_path / "p.yaml", nodes=nodes)
    spec, _ = ir.load(tmp_path / "p.yaml")
    steps = []
    for name in ir.LAUNCHES:
        task = ir.tasks(spec)[name]
        values = task["inputs"]["parameters"]
        assert values["placement"]["runtimeValue"]["constant"] == job_placement(nodes)
        assert values["run_id"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"
        assert int(task["retryPolicy"]["maxRetryCount"]) > 0, "a retry finds the job again"
        steps.append(values["training_step"]["runtimeValue"]["constant"])
    assert sorted(steps) == ["finetune", "finetune", "pretrain"]
    removal = spec["root"]["dag"]["tasks"][ir.REMOVAL]
    assert removal["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert removal["dependentTasks"] == ["exit-handler-1"]


def documented_nodes(tmp_path: Path) -> Path:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "kubeflow.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "nodes.yaml").write_text(text)
    return tmp_path / "nodes.yaml"


@pytest.mark.parametrize("profile_of_file", ["gpu-single", "gpu-trainjob"])
def test_a_nodes_file_with_affinities_reaches_every_pod(profile_of_file: str, tmp_path: Path, shared: Path):
    file = documented_nodes(tmp_path)
    out = tmp_path / "p.yaml"
    assert main(["pipeline", "compile", "--profile", profile_of_file, "--nodes", str(file), "--out", str(out)]) == 0
    nodes, content = load_nodes(file), yaml.safe_load(file.read_text())
    spec, kubernetes = ir.load(out)
    for name, settings in kubernetes.items():
        trains = name in ir.TRAINING_TASKS and profile_of_file == "gpu-single"
        wanted = [{"operator": "In", **each} for each in content["gpu_affinity" if trains else "cpu_affinity"]]
        (term,) = settings["nodeAffinity"]
        assert term["matchExpressions"] == wanted and "weight" not in term, name
        pool = settings["nodeSelector"]["labels"]["cloud.google.com/gke-nodepool"]
        assert pool == content["gpu_pool" if trains else "cpu_pool"]
    if profile_of_file == "gpu-trainjob":
        placement = ir.tasks(spec)["launch-trainjob"]["inputs"]["parameters"]["placement"]["runtimeValue"]["constant"]
        assert placement == job_placement(nodes)
        settings = {
            "run": "r",
            "step": "finetune",
            "training_set": "s3://b/t",
            "out": "s3://b/o",
            "recipe": "{}",
            "seed": 0,
        }
        job = train_job(
            JobSettings.model_validate({**settings, "code_version": "1", "image": "x:1", "placement": placement})
        )
        (patch,) = job["spec"]["runtimePatches"]
        pod = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"][
            "spec"
        ]
        (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert term["matchExpressions"] == content["gpu_affinity"]
        kubernetes_validate.validate(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "p"},
                "spec": {**pod, "containers": [{"name": "c"}]},
            },
            "1.34",
            strict=True,
        )
        assert closed_schema.errors(job, shared / "schemas") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("platform: gke\n", "nodes: platform gke needs the name of the node pool"),
        ("gpu_afinity: []\n", "gpu_affinity"),
        ("gpu_affinity: [{key: zone, operator: In}]\n", "gpu_affinity.0: zone with In needs values"),
        ("gpu_affinity: [{key: zone, operator: Exists, values: [a]}]\n", "zone with Exists has no values"),
        ("cpu_affinity: [{key: cores, operator: Gt, values: [many]}]\n", "cores with Gt needs one whole number"),
        ("cpu_affinity: [{key: 'a b', values: [x]}]\n", "cpu_affinity.0.key"),
        ("cpu_affinity: [{key: a, values: [1]}]\n", "cpu_affinity.0.values.0"),
        ("- a\n", "instead of a mapping"),
    ],
)
def test_a_nodes_file_that_no_cluster_has_is_refused(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "n.yaml").write_text(text)
    command = [
        "pipeline",
        "compile",
        "--profile",
        "cpu-pool",
        "--out",
        str(tmp_path / "p.yaml"),
        "--nodes",
        str(tmp_path / "n.yaml"),
    ]
    assert main(command) == 1
    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "p.yaml").exists()


def test_a_nodes_file_and_a_node_option_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = documented_nodes(tmp_path)
    assert (
        main(["pipeline", "compile", "--nodes", str(file), "--gpu-pool", "l4", "--out", str(tmp_path / "p.yaml")]) == 1
    )
    assert "and --gpu-pool both name nodes: write gpu_pool into the file" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--platform", "gke"], "--gpu-pool"),
        (["--spot"], "no label for spot nodes"),
        (["--gpu-pool", "x"], "no names of node pools"),
        (["--priority", "low"], "--queue"),
        (["--queue", "Not A Name"], "queue"),
    ],
)
def test_settings_that_no_cluster_has_are_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["pipeline", "compile", "--out", str(tmp_path / "p.yaml"), *options]) == 1
    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "p.yaml").exists()


def test_every_pod_is_bounded_unprivileged_and_gets_its_secrets(on_gpus: Path):
    spec, kubernetes = ir.load(on_gpus)
    assert set(kubernetes) == ir.GRAPH
    for name, settings in kubernetes.items():
        resources = ir.containers(spec)[name]["resources"]
        assert resources["resourceCpuRequest"] and resources["resourceMemoryRequest"], name
        assert resources["resourceMemoryLimit"], name
        assert settings["securityContext"]["runAsNonRoot"] is True, name
        assert int(settings["securityContext"]["runAsUser"]) > 0, name
        assert int(settings["activeDeadlineSeconds"]) > 0, name
        secret, *online = settings["secretAsEnv"]
        assert [(found["secretName"], found["optional"]) for found in online] == {
            "materialize": [(ONLINE_SECRET, True), (REGISTRY_SECRET, True)],
            "deploy": [(ONLINE_SECRET, True)],  # it makes sure that Redis has the rows
        }.get(name, []), name
        assert secret["secretName"] == S3_SECRET and secret["optional"] is True, name
        variables = {pair["envVar"] for pair in secret["keyToEnv"]}
        assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= variables, name


def test_only_steps_without_effects_are_tried_again(on_gpus: Path):
    spec, _ = ir.load(on_gpus)
    for name, task in ir.tasks(spec).items():
        assert ("retryPolicy" in task) == (name not in {*ir.EFFECTS, ir.CANARY}), name


def test_the_champion_outlives_the_pod(on_gpus: Path):
    spec, kubernetes = ir.load(on_gpus)
    for name, settings in kubernetes.items():
        mounts = settings.get("pvcMount", [])
        assert bool(mounts) == (name in ir.EFFECTS), name
        if mounts:
            assert mounts[0]["constant"] == STATE_CLAIM and mounts[0]["mountPath"] == STATE_MOUNT
    default = spec["root"]["inputDefinitions"]["parameters"]["state_dir"]["defaultValue"]
    assert default.startswith(STATE_MOUNT)


def test_the_examples_are_what_the_profile_names():
    examples = GOLDEN.parents[1] / "manifests" / "examples"
    secret = yaml.safe_load((examples / "pipeline-s3-secret.yaml").read_text())
    claim = yaml.safe_load((examples / "pipeline-state-claim.yaml").read_text())
    for example in (secret, claim):
        kubernetes_validate.validate(example, "1.34", strict=True)
    assert secret["metadata"]["name"] == S3_SECRET and set(secret["stringData"]) == set(S3_SECRET_KEYS)
    assert claim["metadata"]["name"] == STATE_CLAIM
    text = (examples.parent / "README.md").read_text()
    assert all(name in text for name in (POOL_LABEL, GPU_RESOURCE, S3_SECRET, STATE_CLAIM, *S3_SECRET_KEYS))


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="gpu-single"):
        build_pipeline("gpu-cluster")  # type: ignore[arg-type]


def test_kubernetes_objects_carry_pipeline_and_version(tmp_path: Path):
    out = tmp_path / "objects.yaml"
    compile_pipeline("gpu-single", out, kubernetes_manifest=True, namespace="ml")
    pipeline, version = yaml.safe_load_all(out.read_text())
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert pipeline["metadata"] == {"name": "ctr-training", "namespace": "ml"}
    assert version["spec"]["pipelineName"] == "ctr-training"
    assert version["spec"]["pipelineSpec"]["root"] and version["spec"]["platformSpec"]["platforms"]


def version_name(folder: Path, **change: str) -> tuple[str, dict]:
    compile_pipeline(change.pop("profile", "gpu-single"), folder / "o.yaml", kubernetes_manifest=True, **change)
    _, version = yaml.safe_load_all((folder / "o.yaml").read_text())
    return version["metadata"]["name"], version["spec"]


def test_versions_of_another_content_have_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A PipelineVersion cannot be changed: one name must never stand for two specs, whatever makes them differ."""
    name, spec = version_name(tmp_path)
    assert version_name(tmp_path) == (name, spec), "the same pipeline has the same name"
    assert version_name(tmp_path, namespace="ml")[0] == name
    assert re.fullmatch(r"ctr-training-0-1-0-gpu-single-[0-9a-f]{8}", name) and len(name) <= 63
    others = [version_name(tmp_path, image="registry.example.com/python:2"), version_name(tmp_path, profile="local")]
    monkeypatch.setattr("pipelines.profiles.CPU_SIZE", ("3", "6Gi", "12Gi", 60))
    others.append(version_name(tmp_path))
    assert len({name, *(other for other, _ in others)}) == 4
    assert all(other != spec for _, other in others)


def test_compiling_twice_gives_the_same_bytes(compiled: Path, profile: str, tmp_path: Path):
    compile_pipeline(profile, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == compiled.read_bytes()


def test_a_failed_compilation_leaves_the_old_file(tmp_path: Path):
    out = tmp_path / "pipeline.yaml"
    out.write_text("old")
    with pytest.raises(ValueError):
        compile_pipeline("no such", out)  # type: ignore[arg-type]
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]
