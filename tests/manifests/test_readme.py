"""Every command, every YAML and every path in ``manifests/README.md`` and ``images/README.md`` does what the text says.

What needs a cluster is run as far as kubectl goes without one: rendered, made with ``--dry-run=client``, or patched with ``--local``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from serving.gateway.cli import app as gateway
from tests.components.object_store import listed
from tests.manifests import closed_schema, kserve_admission, kserve_controller
from tests.manifests.conftest import rendered
from tests.manifests.kserve_cluster import Cluster
from tests.serving.small import MODEL_VERSION
from thinktwice.release.cli import bundle
from thinktwice.release.model_store import push_model

ROOT = Path(__file__).resolve().parents[2]
README, IMAGES = ROOT / "manifests" / "README.md", ROOT / "images" / "README.md"
EXAMPLES = ROOT / "manifests" / "examples"

Resources = dict[str, dict[str, Any]]
Render = Callable[[str], Resources]


def blocks(language: str, file: Path = README) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", file.read_text(), re.MULTILINE | re.DOTALL)
    return [text for found, text in fences if found == language]


def commands(file: Path = README) -> list[str]:
    """Lines of the shell blocks, and commands in the cells of tables, without comments."""
    lines = "".join(blocks("sh", file)).splitlines() + re.findall(r"\| `(kubectl [^`]+)` \|", file.read_text())
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def kubectl(*words: str, **more: Any) -> str:
    done = subprocess.run(["kubectl", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, **more)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def by_kind(text: str) -> Resources:
    return {resource["kind"]: resource for resource in yaml.safe_load_all(text)}


def test_every_path_in_a_command_exists() -> None:
    lines = commands() + commands(IMAGES)
    paths = {word for line in lines for word in line.split() if word.startswith(("manifests/", "images/"))}
    assert len(paths) > 10
    written = {path for path in paths if path.endswith(".env")}  # by the command itself
    assert [path for path in sorted(paths - written) if not (ROOT / path).exists()] == []
    assert all((ROOT / path).parent.is_dir() for path in written)
    linked = set(re.findall(r"`((?:base|components|overlays|observability|examples)/[\w./*-]*)`", README.read_text()))
    assert [path for path in sorted(linked) if not list((ROOT / "manifests").glob(path.rstrip("/")))] == []


# Each kind of command, how it is run here.

SERVICES = {
    "inferenceservice",
    "servingruntime",
    "deployment",
    "service",
    "hpa",
    "httproute",
    "configmap",
    "serviceaccount",
}
KINDS = SERVICES | {"networkpolicy", "poddisruptionbudget", "pvc"}


def renders(folder: str, crds: Path) -> None:
    resources = by_kind(rendered(ROOT / folder))
    isvc, runtime = resources["InferenceService"], resources["ServingRuntime"]
    assert closed_schema.errors(isvc, crds) == closed_schema.errors(runtime, crds) == []
    assert kserve_admission.refused(isvc) == kserve_admission.runtime_refused(runtime) == []
    assert list(kserve_controller.never_ready(isvc, {runtime["metadata"]["name"]: runtime})) == []


def applied_file(namespace: str, file: str, _: Path) -> None:
    resource = yaml.safe_load((ROOT / file).read_text())
    kubernetes_validate.validate(resource, "1.34", strict=True)
    named = resource["metadata"].get("namespace")
    assert resource["kind"] == "Namespace" if not namespace else named is None, "the command names the namespace"


def secret(rest: str, tmp: Path) -> None:
    (tmp / "salt.txt").write_text("x")
    words = shlex.split(rest.replace("=salt.txt", f"={tmp / 'salt.txt'}"))
    made = yaml.safe_load(kubectl("create", *words, "--dry-run=client", "-o", "yaml"))
    assert made["kind"] == "Secret" and made["metadata"]["namespace"] == "thinktwice"
    wanted = {(made["metadata"]["name"], key) for key in made["data"]}
    runtime = by_kind(rendered(ROOT / "manifests" / "overlays" / "standard-log"))["ServingRuntime"]
    refs = [e["valueFrom"]["secretKeyRef"] for e in runtime["spec"]["containers"][0]["env"] if "valueFrom" in e]
    assert wanted <= {(ref["name"], ref["key"]) for ref in refs}, "a container reads it"


def labelled(kind: str, name: str, rest: str, tmp: Path) -> None:
    file = tmp / "object.yaml"
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": kind.capitalize(), "metadata": {"name": name.lower()}}))
    made = yaml.safe_load(kubectl("label", "--local", "-f", str(file), *rest.split(), "-o", "yaml"))
    labels = made["metadata"]["labels"]
    assert labels.keys() & {
        "ctr.example.org/serves-predictor",
        "thinktwice.dev/pool",
        "pod-security.kubernetes.io/enforce",
    }
    assert labels.get("pod-security.kubernetes.io/enforce", "baseline") in ("baseline", "restricted")


def digest_written(line: str, tmp: Path) -> None:
    """The registry's answer comes from a script; the line itself is run as it is, and the overlay renders with what it wrote."""
    digest = "sha256:" + "ab" * 32
    (tmp / "bin").mkdir()
    script = tmp / "bin" / "skopeo"
    script.write_text(f'#!/bin/sh\ntest "$1 $2 $3" = "inspect --format {{{{.Digest}}}}" && echo {digest}\n')
    script.chmod(0o755)
    shutil.copytree(ROOT / "manifests", tmp / "manifests")
    environment = {**os.environ, "PATH": f"{tmp / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", line], cwd=tmp, check=True, env=environment)
    overlay = Path(line.split(" > ")[1]).parent
    assert f"@{digest}" in kubectl("kustomize", str(tmp / overlay))


def routes_rendered(rest: str, tmp: Path) -> None:
    shutil.copytree(ROOT / "manifests", tmp / "manifests")
    words = [str(tmp / word) if word.startswith("manifests/") else word for word in shlex.split(rest)]
    done = CliRunner().invoke(gateway, ["render", *words])
    assert done.exit_code == 0, done.output


def storage_container(rest: str, tmp: Path) -> None:
    """KServe's own object, patched: its container then meets the pod standard `restricted`."""
    container = {"name": "storage-initializer", "image": "x", "resources": {"limits": {"memory": "1Gi"}}}
    base = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ClusterStorageContainer",
        "metadata": {"name": "default"},
    }
    file = tmp / "default.yaml"
    file.write_text(
        yaml.safe_dump({**base, "spec": {"container": container, "supportedUriFormats": [{"prefix": "s3://"}]}})
    )
    patched = yaml.safe_load(kubectl("patch", "--local", "-f", str(file), *rest.split(), "-o", "yaml"))["spec"]
    assert patched["supportedUriFormats"] == [{"prefix": "s3://"}] and patched["container"]["resources"]
    context = patched["container"]["securityContext"]
    assert context["runAsNonRoot"] is True and context["runAsUser"] >= 1000
    assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [patched["container"]]}}
    kubernetes_validate.validate(pod, "1.34", strict=True)


def deleted(kind: str, names: str, _: Path) -> None:
    """What is deleted is what a rollout leaves behind."""
    overlays = ("standard", "standard-kserve", "standard-canary", "standard", "standard-log")
    applied = [by_kind(rendered(ROOT / "manifests" / "overlays" / name)) for name in overlays]
    cluster = Cluster()
    for resources in applied:
        cluster.apply(resources)
    left = cluster.orphans() | {f"httproute/{name}" for name in cluster.routes}
    left |= {f"pvc/{applied[-1]['PersistentVolumeClaim']['metadata']['name']}", "servingruntime/ctr-torchserve"}
    assert {f"{kind}/{name}" for name in names.split()} <= left


def got(kinds: str, rest: str, crds: Path) -> None:
    assert set(kinds.split(",")) <= KINDS
    (selector,) = re.findall(r"-l (\S+)", rest)
    key, value = selector.split("=")
    resources = by_kind(rendered(ROOT / "manifests" / "overlays" / "standard-log"))
    assert {resource["metadata"]["labels"].get(key) for resource in resources.values()} == {value}
    # Labels of the service and of the predictor reach what KServe makes.
    predictor = resources["InferenceService"]["spec"]["predictor"]
    assert predictor["labels"].get(key) == value


def compiled(rest: str, tmp: Path) -> None:
    words = [str(tmp / word) if word.endswith(".yaml") else word for word in rest.split()]
    done = CliRunner().invoke(app, ["compile", *words])
    assert done.exit_code == 0, done.output
    if "--kubernetes-manifest" in words:
        kinds = by_kind((tmp / "ctr_training.yaml").read_text())
        assert set(kinds) == {"Pipeline", "PipelineVersion"}
        assert {r["metadata"]["namespace"] for r in kinds.values()} == {"kubeflow"}


def written_by_compile(file: str) -> None:
    """The line before makes it, and is run."""
    lines = commands()
    assert f"--out {file}" in lines[lines.index(f"kubectl apply -f {file}") - 1]


RUN: tuple[tuple[str, Callable[..., None]], ...] = (
    (r"kubectl (?:kustomize|apply -k) (\S+)", lambda folder, tmp, crds: renders(folder, crds)),
    (r"kubectl apply (?:-n (\S+) )?-f (manifests/\S+)", lambda ns, file, tmp, crds: applied_file(ns, file, tmp)),
    (
        r"kubectl apply -f (ctr_training.yaml)",
        lambda file, tmp, crds: written_by_compile(file),
    ),
    (r"kubectl create (secret .*)", lambda rest, tmp, crds: secret(rest, tmp)),
    (
        r"kubectl create (namespace \S+)",
        lambda rest, tmp, crds: kubectl("create", *rest.split(), "--dry-run=client") and None,
    ),
    (r"kubectl label (namespace|node) (\S+) (.*)", lambda kind, name, rest, tmp, crds: labelled(kind, name, rest, tmp)),
    (r"kubectl patch clusterstoragecontainer default (.*)", lambda rest, tmp, crds: storage_container(rest, tmp)),
    (r"kubectl delete (\S+) (.*) -n thinktwice", lambda kind, names, tmp, crds: deleted(kind, names, tmp)),
    (r"kubectl get (\S+) (-n thinktwice .*)", lambda kinds, rest, tmp, crds: got(kinds, rest, crds)),
    (r"(echo \"image=.*)", lambda line, tmp, crds: digest_written(line, tmp)),
    (r"thinktwice gateway render (.*)", lambda rest, tmp, crds: routes_rendered(rest, tmp)),
    (r"thinktwice pipeline compile (.*)", lambda rest, tmp, crds: compiled(rest, tmp)),
)
UPLOADS = [line for line in commands() if line.startswith("thinktwice bundle push ")]
DOWNLOADS = [line for line in commands() if re.match("thinktwice bundle (list|pull) ", line)]


@pytest.mark.parametrize("line", [line for line in commands() if line not in UPLOADS + DOWNLOADS])
def test_every_command_is_run(line: str, crds: Path, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    runs = [(match, run) for pattern, run in RUN if (match := re.fullmatch(pattern, line))]
    assert len(runs) == 1, f"no test runs `{line}`"
    match, run = runs[0]
    run(*match.groups(), tmp_path, crds)


@pytest.mark.server
def test_the_upload_commands_copy_what_the_text_lists(deployed: Path, store: Any) -> None:
    """From the champion of this machine, and from where a run on a cluster left the model."""
    assert len(UPLOADS) == 2
    store.create_bucket(Bucket="thinktwice-models")
    store.create_bucket(Bucket="mlpipeline")
    for line in UPLOADS:
        words = shlex.split(line)[1:]
        if "--model" in words:
            source = words[words.index("--model") + 1].removeprefix("s3://mlpipeline/")
            model = deployed / "out" / "model"
            for path in (path for path in model.rglob("*") if path.is_file()):
                store.upload_file(str(path), "mlpipeline", f"{source}/{path.relative_to(model)}")
        else:
            words += ["--state", str(deployed / "state")]
        done = CliRunner().invoke(bundle, words[1:])
        assert done.exit_code == 0, done.output
        found = listed(store, "thinktwice-models")
        text = next(block for block in blocks("") if "ctr.mar" in block)
        documented = re.findall(r"^(ctr/)\S+?/(\S+)", text, re.MULTILINE)
        assert {key.split(MODEL_VERSION + "/")[1].split("/")[0] for key in found} == {
            p.strip("/") for _, p in documented
        }
        assert not any(key.endswith(".parquet") or "bundle" in key for key in found)
        for key in found:
            store.delete_object(Bucket="thinktwice-models", Key=key)


@pytest.mark.server
def test_the_other_bundle_commands_run_as_written(deployed: Path, store: Any, tmp_path: Path) -> None:
    store.create_bucket(Bucket="thinktwice-models")
    push_model(str(deployed / "state" / "champion"), "s3://thinktwice-models/ctr")
    assert [line.split()[2] for line in DOWNLOADS] == ["list", "pull"]
    for line in DOWNLOADS:
        words = shlex.split(
            line.replace("ml-1m-3f2a9c01d4e7", MODEL_VERSION).replace("--to model", f"--to {tmp_path / 'model'}")
        )
        done = CliRunner().invoke(bundle, words[2:])
        assert done.exit_code == 0 and MODEL_VERSION in done.output, done.output
    assert (tmp_path / "model" / "ctr.mar").is_file()


def own_files() -> dict[str, str]:
    """Whole files of one's own repository, by the path in their first line."""
    return {match[1]: block for block in blocks("yaml") if (match := re.match(r"# (\S+/kustomization\.yaml)\n", block))}


def additions() -> list[dict[str, Any]]:
    """What is added to ``ads/stable``: entries of ``patches`` and ``components``."""
    found = [yaml.safe_load(block) for block in blocks("yaml") if not re.match(r"# \S+\n", block)]
    assert all(set(entry) <= {"patches", "components"} for entry in found)
    return found


@pytest.fixture
def ads(tmp_path: Path, render: Render) -> Callable[..., Resources]:
    """Renders a folder of one's own repository, beside a checkout of this one, with ``add`` in its ``stable`` overlay."""
    render("standard")  # skips without kubectl
    shutil.copytree(ROOT / "manifests", tmp_path / "thinktwice" / "manifests")

    def call(folder: str, add: dict[str, Any] | None = None, overlay: str = "standard") -> Resources:
        for path, text in own_files().items():
            content = yaml.safe_load(text)
            if path.startswith("ads/stable/"):
                for key, values in (add or {}).items():
                    content[key] = content.get(key, []) + values
                content["resources"] = [f"../../thinktwice/manifests/overlays/{overlay}"]
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(yaml.safe_dump(content, sort_keys=False))
        return by_kind(kubectl("kustomize", str(tmp_path / folder)))

    return call


def sound(resources: Resources, crds: Path) -> None:
    isvc, runtime = resources["InferenceService"], resources["ServingRuntime"]
    assert closed_schema.errors(isvc, crds) == closed_schema.errors(runtime, crds) == []
    assert kserve_admission.refused(isvc) == kserve_admission.runtime_refused(runtime) == []
    assert list(kserve_controller.ignored(isvc)) == []
    assert list(kserve_controller.never_ready(isvc, {runtime["metadata"]["name"]: runtime})) == []
    for kind in set(resources) - {"InferenceService", "ServingRuntime"}:
        kubernetes_validate.validate(resources[kind], "1.34", strict=True)
    assert {resource["metadata"]["namespace"] for resource in resources.values()} == {"ads"}


@pytest.mark.parametrize("overlay", ["standard", "standard-kserve"])
def test_the_overlays_of_ones_own_work_as_written(ads: Callable[..., Resources], crds: Path, overlay: str) -> None:
    assert set(own_files()) == {"ads/stable/kustomization.yaml", "ads/canary/kustomization.yaml"}
    assert f"overlays/{overlay}" in README.read_text()
    stable, canary = ads("ads/stable", overlay=overlay), ads("ads/canary", overlay=overlay)
    for resources in (stable, canary):
        sound(resources, crds)
        assert "@sha256:" in resources["ServingRuntime"]["spec"]["containers"][0]["image"]
    assert kserve_controller.storage_uris(stable["InferenceService"]) == ["s3://ads-models/ctr/ml-1m-3f2a9c01d4e7/"]
    for predictor in kserve_controller.predictors(canary["InferenceService"]):
        version = predictor["labels"]["ctr.example.org/model-version"]
        assert predictor["model"]["storageUri"] == f"s3://ads-models/ctr/{version}/"
    (entry,) = canary["InferenceService"]["spec"]["canary"]
    assert entry["predictor"]["name"] == entry["predictor"]["labels"]["ctr.example.org/model-version"]


def test_promotion_and_roll_back_with_ones_own_overlays(ads: Callable[..., Resources]) -> None:
    """As the text tells: the version in the patch of `ads/stable` changes, and that is applied."""
    cluster = Cluster()
    cluster.apply(ads("ads/stable"))
    first = cluster.template_hash("ctr-predictor")
    cluster.apply(ads("ads/canary"))
    assert cluster.template_hash("ctr-predictor") == first and cluster.routes["ctr"]["ctr-predictor"] == 90
    (canary,) = [predictor for predictor in kserve_controller.predictors(cluster.isvc or {}) if predictor.get("name")]
    carried = {
        "labels": {"ctr.example.org/model-version": canary["labels"]["ctr.example.org/model-version"]},
        "model": {"storageUri": canary["model"]["storageUri"]},
    }
    patch = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "ctr"},
        "spec": {"predictor": carried},
    }
    cluster.apply(ads("ads/stable", {"patches": [{"patch": yaml.safe_dump(patch)}]}))
    assert cluster.services == {"ctr-predictor"} and cluster.dead_backends() == set()
    assert kserve_controller.storage_uris(cluster.isvc or {}) == [canary["model"]["storageUri"]]
    cluster.apply(ads("ads/stable"))
    assert cluster.template_hash("ctr-predictor") == first and cluster.dead_backends() == set()


@pytest.mark.parametrize("overlay", ["standard", "standard-kserve"])
@pytest.mark.parametrize("number", range(5))
def test_every_addition_does_what_the_text_says(
    ads: Callable[..., Resources], crds: Path, number: int, overlay: str
) -> None:
    assert len(additions()) == 5
    plain, added = ads("ads/stable", overlay=overlay), ads("ads/stable", additions()[number], overlay)
    sound(added, crds)
    changed = {kind for kind in plain if plain[kind] != added[kind]}
    way_out = [resources["NetworkPolicy"]["spec"]["egress"] for resources in (plain, added)]
    if number == 0:
        assert changed == {"ServiceAccount", "ServingRuntime"}
        assert added["ServiceAccount"]["imagePullSecrets"] == [{"name": "registry"}]
        assert added["ServiceAccount"]["secrets"] == plain["ServiceAccount"]["secrets"]
        assert added["ServingRuntime"]["spec"]["containers"][0]["imagePullPolicy"] == "Always"
    elif number == 1:
        assert changed == {"InferenceService"}
        pod = {"affinity": added["InferenceService"]["spec"]["predictor"]["affinity"], "containers": [{"name": "c"}]}
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}, "1.34", strict=True
        )
    elif number == 2:
        assert changed == {"NetworkPolicy"} and way_out[1][:-1] == way_out[0]
        assert way_out[1][-1]["ports"] == [{"port": 9000, "protocol": "TCP"}]
    elif number == 3:
        assert changed == {"NetworkPolicy"}
        assert [rule for rule in way_out[1] if rule not in way_out[0]] == [
            {"to": [{"ipBlock": {"cidr": "10.20.0.0/16"}}], "ports": [{"port": 443, "protocol": "TCP"}]}
        ]
    else:
        assert changed == {"InferenceService"}
        labels = added["InferenceService"]["metadata"]["labels"]
        assert labels[kserve_controller.VISIBILITY["Standard"]] == "cluster-local"


def test_the_secret_is_the_one_the_account_names(render: Render) -> None:
    made = yaml.safe_load((EXAMPLES / "model-store-secret.yaml").read_text())
    assert made["metadata"]["name"] in [entry["name"] for entry in render("standard")["ServiceAccount"]["secrets"]]
    assert set(made["stringData"]) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert set(made["stringData"].values()) == {"fill-in"}
    annotations = {
        key.removeprefix("serving.kserve.io/"): value for key, value in made["metadata"]["annotations"].items()
    }
    assert set(annotations) == {"s3-endpoint", "s3-usehttps", "s3-verifyssl", "s3-region"}
    assert re.fullmatch(r"[\w.-]+(:\d+)?", annotations["s3-endpoint"]), "HOST or HOST:PORT"
    assert {annotations["s3-usehttps"], annotations["s3-verifyssl"]} <= {"0", "1"}


def test_every_example_is_named_in_the_text() -> None:
    for path in EXAMPLES.iterdir():
        assert f"manifests/examples/{path.name}" in README.read_text(), path.name


def made(line: str, folder: Path) -> None:
    """Run a command ``.venv/bin/python images/NAME.py ... > FILE`` with its file, and those of commands before it, in ``folder``."""
    pins = next(other for other in commands(IMAGES) if "images/requirements.py" in other)
    for each in dict.fromkeys((pins, line)):
        words, _, out = each.removeprefix(".venv/bin/python ").partition(" > ")
        command = [str(ROOT / word) if (ROOT / word).is_file() else word for word in shlex.split(words)]
        done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stdout, done.stderr
        (folder / out).write_text(done.stdout)


BUILDS = r"images/engine\.sh (images/(?:build_predictor|build_pipeline|check_predictor|check_pipeline|check_feedback)\.sh)(.*)"


@pytest.mark.parametrize("line", commands(IMAGES))
def test_every_command_of_the_images_is_one_of_the_scripts(line: str, tmp_path: Path) -> None:
    """Building takes minutes and an engine: here the script parses and knows the options; the figures say what a build gave."""
    if match := re.fullmatch(r"thinktwice pipeline compile (.*)", line):
        compiled(match[1], tmp_path)
        return
    if match := re.fullmatch(r"docker push (\S+)", line):
        assert f"--tag {match[1]}" in IMAGES.read_text() and f"--image {match[1]}" in IMAGES.read_text()
        return
    if line.startswith(".venv/bin/python "):
        made(line, tmp_path)
        return
    if line.startswith("docker run ") or line.startswith("docker image inspect "):
        assert "COPY sbom.json /opt/sbom.json" in (ROOT / "images/predictor.Containerfile").read_text()
        assert line.endswith(" thinktwice-predictor:0.1.0 /opt/sbom.json") or ".Config.Labels" in line
        return
    match = re.fullmatch(BUILDS, line)
    assert match, f"no test knows `{line}`"
    text = (ROOT / match[1]).read_text()
    if "build.sh" in text:
        text = (ROOT / "images" / "build.sh").read_text()
    for option in re.findall(r"--\w+", match[2]):
        assert f"{option})" in text, f"{match[1]} does not know {option}"
