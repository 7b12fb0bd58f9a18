"""The overlays beyond the predictor (experiment, evidence, production, local-kind, training): they render with the values that they require
and with nothing less, fit their schemas, and keep the policies of this repository."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.core
import typer.main
import yaml
from prometheus_client import CollectorRegistry

from serving.gateway.file import load_gateway
from serving.gateway.process import BOOTSTRAP
from serving.gateway.reload import plan
from serving.telemetry.metrics import OUTCOMES, Metrics
from tests.manifests import closed_schema, kserve_admission, kserve_controller
from thinktwice.cli import app
from thinktwice.experiment.bootstrap import bootstrap
from thinktwice.experiment.file import load_experiment

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
DIGEST = "sha256:" + "0" * 64
#: Values that an overlay requires and the repository does not have, by file.
REQUIRED = {
    "experiment": ("envoy-image.env", f"image=docker.io/envoyproxy/envoy@{DIGEST}\n"),
    "production": ("predictor.env", f"image=registry.example.org/thinktwice/predictor@{DIGEST}\n"),
}
OVERLAYS = ("experiment", "evidence", "production", "local-kind", "training")
#: Of the predictor alone: test_overlays.py has more about them.
PREDICTOR = ("standard", "standard-canary", "knative")
#: Kinds without a schema here, neither in Kubernetes nor in the folder of schemas.
WITHOUT_SCHEMA = {"PodMonitor", "PrometheusRule", "LocalQueue"}
CLUSTER_WIDE = {"PriorityClass", "ClusterTrainingRuntime"}

#: What kubectl says about the one field that can put the last namespace into a query (components/autoscaling, components/monitoring).
DEPRECATED = "# Warning: 'vars' is deprecated."

Objects = list[dict[str, Any]]


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the required values are filled in."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: it renders the overlays")
    copy = Path(
        shutil.copytree(
            MANIFESTS, tmp_path_factory.mktemp("tree") / "manifests", ignore=shutil.ignore_patterns("*.env")
        )
    )
    for overlay, (name, text) in REQUIRED.items():
        (copy / "overlays" / overlay / name).write_text(text)
    return copy


@pytest.fixture(scope="session")
def objects(tree: Path) -> Callable[[str], Objects]:
    known: dict[str, Objects] = {}

    def render(overlay: str) -> Objects:
        if overlay not in known:
            done = kustomize(tree / "overlays" / overlay)
            said = [line for line in done.stderr.splitlines() if not line.startswith(DEPRECATED)]
            assert done.returncode == 0 and said == [], done.stderr
            known[overlay] = list(yaml.safe_load_all(done.stdout))
        return known[overlay]

    return render


def one(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods(objects: Objects) -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    """Name, pod spec and pod labels of everything that runs; a ServingRuntime's containers are joined with each of its services."""
    found = []
    for each in objects:
        name, spec = each["metadata"]["name"], each.get("spec", {})
        if each["kind"] in ("Deployment", "StatefulSet"):
            found.append((name, spec["template"]["spec"], spec["template"]["metadata"]["labels"]))
        elif each["kind"] == "ClusterTrainingRuntime":
            template = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
            found.append((name, template["spec"], template["metadata"]["labels"]))
        elif each["kind"] == "InferenceService":
            runtime = one(objects, "ServingRuntime", spec["predictor"]["model"]["runtime"])["spec"]
            pod = {**spec["predictor"], "containers": runtime["containers"], "volumes": runtime["volumes"]}
            labels = {
                **spec["predictor"]["labels"],
                "serving.kserve.io/inferenceservice": name,
                "component": "predictor",
            }
            found.append((name, pod, labels))
    return found


every_overlay = pytest.mark.parametrize("overlay", [*OVERLAYS, *PREDICTOR])


@pytest.mark.parametrize("overlay", sorted(REQUIRED))
def test_without_its_required_value_nothing_renders(tree: Path, tmp_path: Path, overlay: str) -> None:
    file = REQUIRED[overlay][0]
    copy = Path(shutil.copytree(tree, tmp_path / "manifests"))
    for content in (None, "other=x\n"):
        path = copy / "overlays" / overlay / file
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        done = kustomize(copy / "overlays" / overlay)
        assert done.returncode != 0 and done.stdout == ""
        assert file in done.stderr or "data.image" in done.stderr, done.stderr


def test_no_required_value_is_in_the_repository() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "manifests"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "overlays/experiment/kustomization.yaml" in tracked and not re.search(r"\.env$", tracked, re.MULTILINE)
    assert "sha256:" not in "".join(path.read_text() for path in MANIFESTS.rglob("*.yaml"))


@every_overlay
def test_every_object_fits_its_schema(objects: Callable[[str], Objects], crds: Path, overlay: str) -> None:
    checked = 0
    for each in objects(overlay):
        if closed_schema.schema_file(crds, each).is_file() if "/" in each["apiVersion"] else False:
            assert closed_schema.errors(each, crds) == [], each["metadata"]["name"]
        elif each["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(each, "1.34", strict=True)
        else:
            continue
        checked += 1
    assert checked > 3


@every_overlay
def test_no_webhook_refuses_an_arm(objects: Callable[[str], Objects], overlay: str) -> None:
    runtimes = {each["metadata"]["name"]: each for each in objects(overlay) if each["kind"] == "ServingRuntime"}
    for each in objects(overlay):
        if each["kind"] == "InferenceService":
            assert kserve_admission.refused(each) == [] and list(kserve_controller.ignored(each)) == []
            assert list(kserve_controller.never_ready(each, runtimes)) == []


@every_overlay
def test_every_object_is_ours_and_in_the_namespace(objects: Callable[[str], Objects], overlay: str) -> None:
    for each in objects(overlay):
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "thinktwice"
        assert each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "kustomize"
        namespace = {"training": "kubeflow"}.get(overlay, "thinktwice")
        assert each["metadata"].get("namespace") == (None if each["kind"] in CLUSTER_WIDE else namespace), each["kind"]


@every_overlay
def test_components_and_base_name_no_namespace(overlay: str) -> None:
    for folder in ("base", "components"):
        for path in (MANIFESTS / folder).rglob("*.yaml"):
            assert not re.search(r"^\s*namespace:", path.read_text(), re.MULTILINE), path


@every_overlay
def test_every_pod_is_restricted(objects: Callable[[str], Objects], overlay: str) -> None:
    found = pods(objects(overlay))
    assert found
    for name, pod, _ in found:
        assert pod["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPath" in volume for volume in pod["volumes"])
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            context = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert context["runAsNonRoot"] is True and context["runAsUser"] >= 1000, name
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]} and context["seccompProfile"] == {
                "type": "RuntimeDefault"
            }
            for kind in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][kind]), f"{name}: {kind}"


@every_overlay
def test_images_are_pinned(objects: Callable[[str], Objects], overlay: str) -> None:
    for name, pod, _ in pods(objects(overlay)):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            image = container["image"]
            assert not image.endswith(":latest") and re.search(r"(:\d+\.\d+\.\d+|@sha256:[0-9a-f]{64})$", image), image
            if overlay == "production" or name == "ctr-gateway":
                assert re.search(r"@sha256:[0-9a-f]{64}$", image), image


@every_overlay
def test_long_running_pods_have_probes_and_time_to_stop(objects: Callable[[str], Objects], overlay: str) -> None:
    for name, pod, _ in pods(objects(overlay)):
        if name == "thinktwice-train":
            assert pod["terminationGracePeriodSeconds"] >= 120  # a checkpoint
            continue
        # Knative itself waits as long as a request of the revision may take.
        assert ("terminationGracePeriodSeconds" in pod) is (overlay != "knative")
        assert pod.get("terminationGracePeriodSeconds", 30) >= 30
        for container in pod["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), name


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


@every_overlay
def test_every_pod_of_a_service_has_a_policy_that_names_its_callers(
    objects: Callable[[str], Objects], overlay: str
) -> None:
    policies = [each["spec"] for each in objects(overlay) if each["kind"] == "NetworkPolicy"]
    services = [each for each in objects(overlay) if each["kind"] == "Service"]
    for service in services:
        backends = [pod for pod in pods(objects(overlay)) if selects(service["spec"]["selector"], pod[2])]
        assert len(backends) == 1, service["metadata"]["name"]
    for name, pod, labels in pods(objects(overlay)):
        if name == "thinktwice-train":
            continue
        ruling = [policy for policy in policies if selects(policy["podSelector"]["matchLabels"], labels)]
        assert len(ruling) == 1 and set(ruling[0]["policyTypes"]) == {"Ingress", "Egress"}, name
        open_ports = {port["port"] for rule in ruling[0]["ingress"] for port in rule["ports"]}
        # In Knative requests come through the queue proxy.
        served = (
            {8012}
            if overlay == "knative"
            else {port["containerPort"] for container in pod["containers"] for port in container["ports"]}
        )
        assert served <= open_ports and all(rule["from"] for rule in ruling[0]["ingress"]), name


def test_the_gateway_is_the_only_way_to_an_arm(objects: Callable[[str], Objects]) -> None:
    found = objects("experiment")
    policy = one(found, "NetworkPolicy", "ctr-predictor")["spec"]
    on_port = [rule["from"] for rule in policy["ingress"] if 8080 in {port["port"] for port in rule["ports"]}]
    gateway, test_request = {"app.kubernetes.io/name": "ctr-gateway"}, {"ctr.example.org/probes-arms": "true"}
    assert on_port == [[{"podSelector": {"matchLabels": labels}} for labels in (gateway, test_request)]]
    for arm in ("ctr-control", "ctr-treatment"):
        labels = one(found, "InferenceService", arm)["metadata"]["labels"]
        assert labels[kserve_controller.VISIBILITY["Standard"]] == "cluster-local"
    out = one(found, "NetworkPolicy", "ctr-gateway")["spec"]["egress"]
    arms = [rule for rule in out if {port["port"] for port in rule["ports"]} != {53}]
    assert [rule["to"] for rule in arms] == [
        [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "ctr-predictor"}}}]
    ]
    assert not any(each["metadata"]["name"] == "ctr" for each in found if each["kind"] == "InferenceService")


def without(arm: dict[str, Any], name: str) -> dict[str, Any]:
    """An arm without its name, its labels and its model."""
    spec = json.loads(json.dumps(arm["spec"]))
    spec["predictor"].pop("labels")
    spec["predictor"]["model"].pop("storageUri")
    return {"annotations": arm["metadata"]["annotations"], "spec": spec}


def test_arms_are_identical_but_for_model_and_labels(objects: Callable[[str], Objects], tree: Path) -> None:
    found = objects("experiment")
    control, treatment = (one(found, "InferenceService", f"ctr-{arm}") for arm in ("control", "treatment"))
    assert without(control, "control") == without(treatment, "treatment")
    assert control["spec"]["predictor"]["model"] != treatment["spec"]["predictor"]["model"]
    differing = {
        key
        for key, value in control["spec"]["predictor"]["labels"].items()
        if treatment["spec"]["predictor"]["labels"][key] != value
    }
    assert differing == {
        "app.kubernetes.io/instance",
        "ctr.example.org/variant",
        "ctr.example.org/arm",
        "ctr.example.org/model-version",
    }
    # And like the service that they stand in for, which components/experiment does not repeat.
    (plain,) = [each for each in objects_of(tree, "standard") if each["kind"] == "InferenceService"]
    assert plain["metadata"]["annotations"] == control["metadata"]["annotations"]
    for field in ("topologySpreadConstraints",):
        plain["spec"]["predictor"].pop(field)
    expected = without(plain, "ctr")
    mine = without(control, "control")
    mine["spec"]["predictor"].pop("topologySpreadConstraints")
    assert mine == expected


def objects_of(tree: Path, overlay: str) -> Objects:
    done = kustomize(tree / "overlays" / overlay)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_the_arm_of_a_pod_is_that_of_the_experiment_file(objects: Callable[[str], Objects]) -> None:
    found = objects("experiment")
    experiment = load_experiment(MANIFESTS / "overlays" / "experiment" / "gateway" / "experiment.yaml")
    arms = {
        each["spec"]["predictor"]["labels"]["ctr.example.org/arm"]
        for each in found
        if each["kind"] == "InferenceService"
    }
    assert arms == {arm.name for arm in experiment.arms} and experiment.coverage == 0
    (container,) = one(found, "ServingRuntime", "ctr-torchserve")["spec"]["containers"]
    (entry,) = [entry for entry in container["env"] if entry["name"] == "THINKTWICE_ARM"]
    assert entry["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['ctr.example.org/arm']"


def test_the_rendered_routes_are_those_of_the_gateway_file(objects: Callable[[str], Objects], tmp_path: Path) -> None:
    folder = MANIFESTS / "overlays" / "experiment" / "gateway"
    declared = load_gateway(folder / "gateway.yaml")
    rendered = plan(declared, tmp_path, None)
    again = "thinktwice gateway render gateway.yaml --out ."
    assert json.loads((folder / BOOTSTRAP).read_text()) == bootstrap(declared.file), again
    data = one(objects("experiment"), "ConfigMap", "ctr-gateway")["data"]
    assert set(data) == {"bootstrap.json", "cds.json", "rds.json"}
    for name in ("cds.json", "rds.json"):
        assert json.loads(data[name])["resources"] == json.loads((folder / name).read_text())["resources"]
    assert rendered.version == json.loads((folder / "rds.json").read_text())["version_info"], again
    hosts = set(re.findall(r'"address": "([^"]+)"', data["cds.json"]))
    assert hosts == {"ctr-control-predictor", "ctr-treatment-predictor"}, (
        "short names: of whatever namespace the gateway is in"
    )


def test_envoy_watches_the_folder_of_the_configmap_and_writes_elsewhere(objects: Callable[[str], Objects]) -> None:
    found = objects("experiment")
    started = json.loads(one(found, "ConfigMap", "ctr-gateway")["data"]["bootstrap.json"])
    pod = one(found, "Deployment", "ctr-gateway")["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["config"]["readOnly"] and "subPath" not in mounts["config"], "a subPath is never updated"
    source = started["dynamic_resources"]["cds_config"]["path_config_source"]
    assert source["watched_directory"]["path"] == mounts["config"]["mountPath"] == str(Path(source["path"]).parent)
    written = started["admin"]["address"]["pipe"]["path"]
    assert Path(written).parent == Path(mounts["logs"]["mountPath"])
    assert f'"{mounts["logs"]["mountPath"]}/access.log"' in json.dumps(started)


def test_the_feedback_service_has_one_writer(objects: Callable[[str], Objects]) -> None:
    found = one(objects("evidence"), "StatefulSet", "ctr-feedback")["spec"]
    assert found["replicas"] == 1
    (claim,) = found["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    (container,) = found["template"]["spec"]["containers"]
    assert container["args"][container["args"].index("--log") + 1].startswith(
        next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == "events") + "/"
    )
    assert found["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_the_commands_of_containers_are_ours(objects: Callable[[str], Objects]) -> None:
    """Options of the command line, parsed by it."""
    pod = one(objects("evidence"), "StatefulSet", "ctr-feedback")["spec"]["template"]["spec"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["command"][:4] == ["/opt/venv/bin/python", "-P", "-m", "thinktwice"]
        words, command = [*container["command"][4:], *container["args"]], typer.main.get_command(app)
        while isinstance(command, typer.core.TyperGroup):
            found = command.get_command(command.make_context("x", [], resilient_parsing=True), words.pop(0))
            assert found is not None
            command = found
        command.make_context("x", words)


def exported() -> set[str]:
    registry = CollectorRegistry()
    Metrics("a", "v1", registry).defaulted("user", "timeout")
    return {sample.name for family in registry.collect() for sample in family.samples}


def test_alerts_and_scalers_ask_for_metrics_that_exist(objects: Callable[[str], Objects]) -> None:
    found = objects("production")
    rules = one(found, "PrometheusRule", "ctr-predictor")["spec"]["groups"][0]["rules"]
    triggers = one(found, "ScaledObject", "ctr-predictor")["spec"]["triggers"]
    asked = [*(rule["expr"] for rule in rules), *(trigger["metadata"]["query"] for trigger in triggers)]
    for text in asked:
        names = set(re.findall(r"thinktwice_\w+", text))
        assert names and names <= exported(), text
        assert text.count("(") == text.count(")")
    assert {
        outcome
        for text in asked
        for group in re.findall(r'outcome!?[~=]+"([^"]+)"', text)
        for outcome in group.split("|")
    } <= set(OUTCOMES)
    assert all(
        rule["annotations"]["action"] and rule["labels"]["severity"] in ("warning", "critical") for rule in rules
    )
    for expr in (rule["expr"] for rule in rules if not rule["expr"].startswith("absent")):
        aggregated = re.findall(r"\b(?:sum|avg|max)\b(?: by \((.*?)\))?", expr)
        assert aggregated and all(by.startswith("namespace") for by in aggregated), (
            f"the alert names no namespace: {expr}"
        )
    # Without metrics a scaler must not see a service without load, and KEDA falls back for the type AverageValue alone.
    assert {(t["metricType"], t["metadata"]["ignoreNullValues"]) for t in triggers} == {("AverageValue", "false")}


@pytest.mark.parametrize("file", ["base", "components/kserve-runtime"])
@pytest.mark.parametrize("ip", ["10.1.2.3", "[fd00::1]"])
def test_the_pod_monitor_finds_the_metrics_of_either_runtime(
    objects: Callable[[str], Objects], file: str, ip: str
) -> None:
    """A monitor keeps only the ports that a container declares, and of them the one it names: the metrics' own is not declared."""
    found = objects("production")
    (endpoint,) = one(found, "PodMonitor", "ctr-predictor")["spec"]["podMetricsEndpoints"]
    runtime = yaml.safe_load((MANIFESTS / file / "servingruntime.yaml").read_text())
    announced = {
        **runtime["spec"]["annotations"],
        **one(found, "ServingRuntime", "ctr-torchserve")["spec"]["annotations"],
    }
    metrics = runtime["spec"]["annotations"]["prometheus.kserve.io/port"]
    port = runtime["spec"]["annotations"].get("prometheus.io/port", announced["prometheus.io/port"])
    assert port == metrics and endpoint["path"] == announced["prometheus.io/path"]
    (declared,) = runtime["spec"]["containers"][0]["ports"]
    assert declared["name"] == endpoint["port"] and set(endpoint) == {"port", "path", "interval", "relabelings"}
    (relabeling,) = endpoint["relabelings"]
    assert relabeling["sourceLabels"] == ["__address__", "__meta_kubernetes_pod_annotation_prometheus_io_port"]
    joined = relabeling["separator"].join([f"{ip}:{declared['containerPort']}", port])
    match = re.fullmatch(relabeling["regex"], joined)
    assert match is not None and relabeling["targetLabel"] == "__address__"
    assert match.expand(re.sub(r"\$(\d)", r"\\\1", relabeling["replacement"])) == f"{ip}:{metrics}"


def texts(value: object) -> Iterator[str]:
    """Every string in a value of YAML."""
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(each)


@pytest.mark.parametrize("overlay", sorted(path.name for path in (MANIFESTS / "overlays").iterdir()))
def test_in_any_namespace_an_overlay_asks_and_names_only_that_one(tree: Path, tmp_path: Path, overlay: str) -> None:
    """Services of one cluster are judged and scaled apart: a healthy one must not hide the other."""
    copy = Path(shutil.copytree(tree, tmp_path / "manifests"))
    for namespace in ("ads", "thinktwice-2") if overlay == "production" else ("ads",):
        own = copy / "overlays" / namespace
        own.mkdir()
        (own / "kustomization.yaml").write_text(f"namespace: {namespace}\nresources: [../{overlay}]\n")
        found = objects_of(copy, namespace)
        assert {each["metadata"].get("namespace", namespace) for each in found} == {namespace}
        written = [text for each in found for text in texts(each)]
        assert not [text for text in written if "thinktwice.svc" in text or "_NAMESPACE)" in text]
        asked = [text for text in written if set(re.findall(r"\bthinktwice_\w+", text)) & exported()]
        assert len(asked) == (9 if overlay == "production" else 0)
        for text in asked:
            selectors = re.findall(r"\bthinktwice_\w+(\{[^}]*\})?", text)
            assert all(f'namespace="{namespace}"' in selector for selector in selectors), text


def test_there_is_one_autoscaler(objects: Callable[[str], Objects]) -> None:
    found = objects("production")
    isvc, scaled = one(found, "InferenceService", "ctr"), one(found, "ScaledObject", "ctr-predictor")["spec"]
    assert isvc["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    assert not {"scaleMetric", "scaleTarget"} & set(isvc["spec"]["predictor"])
    assert scaled["scaleTargetRef"]["name"] == "ctr-predictor"
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (
        isvc["spec"]["predictor"]["minReplicas"],
        isvc["spec"]["predictor"]["maxReplicas"],
    )


def test_production_spreads_over_zones_and_comes_first(objects: Callable[[str], Objects]) -> None:
    found = objects("production")
    predictor = one(found, "InferenceService", "ctr")["spec"]["predictor"]
    keys = [constraint["topologyKey"] for constraint in predictor["topologySpreadConstraints"]]
    assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    assert predictor["priorityClassName"] == one(found, "PriorityClass", "thinktwice-serving")["metadata"]["name"]


@every_overlay
def test_pull_secrets_can_be_patched_into_every_account(
    objects: Callable[[str], Objects], tree: Path, tmp_path: Path, overlay: str
) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "manifests"))
    (copy / "overlays" / "own").mkdir()
    patch = "- op: add\n  path: /imagePullSecrets\n  value: [{name: registry}]\n"
    own = {"resources": [f"../{overlay}"], "patches": [{"target": {"kind": "ServiceAccount"}, "patch": patch}]}
    (copy / "overlays" / "own" / "kustomization.yaml").write_text(yaml.safe_dump(own))
    found = objects_of(copy, "own")
    accounts = {each["metadata"]["name"]: each for each in found if each["kind"] == "ServiceAccount"}
    assert all(account["imagePullSecrets"] == [{"name": "registry"}] for account in accounts.values())
    for name, pod, _ in pods(found):
        assert name == "thinktwice-train" or pod["serviceAccountName"] in accounts
