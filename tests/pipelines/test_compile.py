"""The pipeline compiles for every profile, and the compiled file says what the profile promises."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

import pipelines
from components.step import IMAGE
from pipelines.compile import compile_pipeline
from pipelines.ctr_training import build_pipeline
from pipelines.profiles import (
    GPU_RESOURCE,
    POOL_LABEL,
    PROFILES,
    S3_SECRET,
    S3_SECRET_KEYS,
    STATE_CLAIM,
    STATE_MOUNT,
)
from tests.pipelines import ir
from thinktwice.cli import main

GOLDEN = Path(pipelines.__path__[0]) / "golden"


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


def test_every_task_is_there_once(compiled: Path):
    spec, _ = ir.load(compiled)
    assert set(ir.tasks(spec)) == ir.GRAPH
    assert set(ir.containers(spec)) == ir.GRAPH


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
        assert bool(task.get("cachingOptions", {}).get("enableCache")) == (name not in ir.EFFECTS), name


def test_every_cached_step_knows_the_version_of_the_code(compiled: Path):
    spec, _ = ir.load(compiled)
    for name, task in ir.tasks(spec).items():
        assert "code_version" in task["inputs"]["parameters"], name


def test_ingest_knows_the_version_of_its_files(compiled: Path):
    spec, _ = ir.load(compiled)
    assert "data_version" in ir.tasks(spec)["ingest"]["inputs"]["parameters"]


def test_gates_hold_back_what_lies_behind_them(compiled: Path):
    spec, _ = ir.load(compiled)
    assert {"ingest", "validate"} == {n for n in spec["root"]["dag"]["tasks"] if not n.startswith("condition")}
    behind = {
        frozenset(n for n in c["dag"]["tasks"] if not n.startswith("condition"))
        for c in spec["components"].values()
        if "dag" in c
    }
    assert frozenset({"package", "deploy"}) in behind and frozenset({"challenge"}) in behind
    conditions = [
        task["triggerPolicy"]["condition"]
        for dag in [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
        for task in dag["tasks"].values()
        if "triggerPolicy" in task
    ]
    assert len(conditions) == 3
    assert any("challenger'] != ''" in c for c in conditions)
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
        (secret,) = settings["secretAsEnv"]
        assert secret["secretName"] == S3_SECRET and secret["optional"] is True, name
        variables = {pair["envVar"] for pair in secret["keyToEnv"]}
        assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= variables, name


def test_only_steps_without_effects_are_tried_again(on_gpus: Path):
    spec, _ = ir.load(on_gpus)
    for name, task in ir.tasks(spec).items():
        assert ("retryPolicy" in task) == (name not in ir.EFFECTS), name


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
