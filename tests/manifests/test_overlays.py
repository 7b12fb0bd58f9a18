"""Every overlay renders, is what its cluster would accept without dropping a field, and runs nothing as root."""

from __future__ import annotations

import copy
import ipaddress
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.config import load_config
from tests.manifests import closed_schema, knative_admission, kserve_admission, kserve_controller
from tests.manifests.kserve_admission import MODE
from tests.manifests.kserve_cluster import Cluster
from tests.manifests.kserve_controller import predictors, storage_uris
from tests.manifests.test_platform import OVERLAYS as PLATFORM

OVERLAYS = (
    "standard",
    "standard-kserve",
    "standard-canary",
    "standard-kserve-canary",
    "standard-cluster-local",
    "knative",
    "knative-kserve",
    "knative-canary",
)
ROOT = Path(__file__).resolve().parents[2]
CUSTOM = ("ServingRuntime", "InferenceService")
KUBERNETES = ("1.30", "1.34")

Render = Callable[[str], dict[str, dict[str, Any]]]

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def pod_of(resources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The pod KServe would make: the runtime's container and volumes, the predictor's pod fields."""
    predictor = resources["InferenceService"]["spec"]["predictor"]
    own = {
        "model",
        "minReplicas",
        "maxReplicas",
        "scaleMetric",
        "scaleTarget",
        "timeout",
        "containerConcurrency",
        "labels",
    }
    own |= {"canaryTrafficPercent", "annotations", "name"}
    runtime = resources["ServingRuntime"]["spec"]
    fields = {key: value for key, value in predictor.items() if key not in own}
    return {**fields, "containers": runtime["containers"], "volumes": runtime["volumes"]}


@every_overlay
def test_it_has_the_resources_of_a_predictor(render: Render, overlay: str) -> None:
    resources = render(overlay)
    assert set(resources) == {
        "ConfigMap",
        "ServiceAccount",
        "ServingRuntime",
        "InferenceService",
        "PodDisruptionBudget",
        "NetworkPolicy",
    }
    for resource in resources.values():
        assert resource["metadata"]["namespace"] == "thinktwice"
        labels = resource["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "thinktwice"
        assert labels["app.kubernetes.io/managed-by"] == "kustomize"


def misfit(resource: dict[str, Any], version: str) -> str:
    """What Kubernetes would refuse in a resource, "" when nothing."""
    try:
        kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return ""


@every_overlay
@pytest.mark.parametrize("kind", CUSTOM)
def test_custom_resources_fit_their_closed_schemas(render: Render, crds: Path, overlay: str, kind: str) -> None:
    assert closed_schema.errors(render(overlay)[kind], crds) == []


@every_overlay
@pytest.mark.parametrize("version", KUBERNETES)
def test_core_resources_fit_kubernetes(render: Render, overlay: str, version: str) -> None:
    core = {kind: resource for kind, resource in render(overlay).items() if kind not in CUSTOM}
    assert {"ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"} <= set(core)
    assert {kind: misfit(resource, version) for kind, resource in core.items()} == dict.fromkeys(core, "")


@every_overlay
@pytest.mark.parametrize("version", KUBERNETES)
def test_the_pod_kserve_would_make_fits_kubernetes(render: Render, overlay: str, version: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ctr-predictor"}, "spec": pod_of(render(overlay))}
    assert misfit(pod, version) == ""


@pytest.mark.parametrize("overlay", ["knative", "knative-kserve", "knative-canary"])
def test_knative_takes_every_pod_field_without_a_feature_flag(render: Render, crds: Path, overlay: str) -> None:
    pod = copy.deepcopy(pod_of(render(overlay)))
    service = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "ctr-predictor"},
        "spec": {"template": {"spec": pod}},
    }
    assert closed_schema.errors(service, crds) == []
    predictor = render(overlay)["InferenceService"]["spec"]["predictor"]
    limits = {"timeoutSeconds": predictor["timeout"], "containerConcurrency": predictor["containerConcurrency"]}
    assert knative_admission.refused({**pod, **limits}) == []


@every_overlay
def test_no_webhook_refuses_it_and_nothing_in_it_is_ignored(render: Render, overlay: str) -> None:
    resources = render(overlay)
    isvc, runtime = resources["InferenceService"], resources["ServingRuntime"]
    assert kserve_admission.refused(isvc) == kserve_admission.runtime_refused(runtime) == []
    assert list(kserve_controller.ignored(isvc)) == []
    assert list(kserve_controller.never_ready(isvc, {runtime["metadata"]["name"]: runtime})) == []
    mode = "Knative" if overlay.startswith("knative") else "Standard"
    assert isvc["metadata"]["annotations"][MODE] == mode
    # Rules about these fields are not in kserve_admission.
    assert not {"explainer", "transformer"} & set(isvc["spec"])
    assert not any({"workerSpec", "storageUris"} & set(predictor) for predictor in predictors(isvc))
    assert not any("confidential" in predictor["model"] for predictor in predictors(isvc))


@every_overlay
def test_the_canary_is_the_one_of_its_mode(render: Render, overlay: str) -> None:
    spec = render(overlay)["InferenceService"]["spec"]
    shares = (
        spec["predictor"].get("canaryTrafficPercent"),
        [canary["trafficPercent"] for canary in spec.get("canary", [])],
    )
    expected = {
        "standard-canary": (None, [10]),
        "standard-kserve-canary": (None, [10]),
        "knative-canary": (10, []),
    }
    assert shares == expected.get(overlay, (None, []))


@pytest.mark.parametrize("overlay", ["standard-canary", "standard-kserve-canary", "knative-canary"])
def test_the_canary_serves_another_version_than_the_stable_overlay(render: Render, overlay: str) -> None:
    stable = render(overlay.removesuffix("-canary"))["InferenceService"]
    canary = render(overlay)["InferenceService"]
    assert len({*storage_uris(stable), *storage_uris(canary)}) == 2
    predictor = canary["spec"]["canary"][0]["predictor"] if "canary" in canary["spec"] else canary["spec"]["predictor"]
    assert predictor["labels"]["ctr.example.org/variant"] == "canary"
    assert stable["spec"]["predictor"]["labels"]["ctr.example.org/variant"] == "stable"
    # Everything else stays: an edit of the pod template in the same step would make the canary differ in two things.
    assert render(overlay)["ServingRuntime"] == render(overlay.removesuffix("-canary"))["ServingRuntime"]


@every_overlay
def test_versions_are_immutable_folders_named_like_the_pod_label(render: Render, overlay: str) -> None:
    isvc = render(overlay)["InferenceService"]
    for uri in storage_uris(isvc):
        assert uri.startswith("s3://")
        assert uri.endswith("/")
        assert "latest" not in uri
    for predictor in predictors(isvc):
        version = predictor["labels"]["ctr.example.org/model-version"]
        assert predictor["model"]["storageUri"].rstrip("/").rsplit("/", 1)[1] == version
        assert re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{12}", version), "as thinktwice.data.ingest.model_version names them"


@every_overlay
def test_only_our_own_runtime_serves_it(render: Render, overlay: str) -> None:
    resources = render(overlay)
    runtime, predictor = resources["ServingRuntime"], resources["InferenceService"]["spec"]["predictor"]
    canaries = [canary["predictor"] for canary in resources["InferenceService"]["spec"].get("canary", [])]
    assert {runtime["metadata"]["name"]} == {p["model"]["runtime"] for p in (predictor, *canaries)}
    assert runtime["metadata"]["name"] == ("ctr-kserve" if "-kserve" in overlay else "ctr-torchserve")
    assert [entry["autoSelect"] for entry in runtime["spec"]["supportedModelFormats"]] == [False]
    assert predictor["model"]["modelFormat"]["name"] in {
        entry["name"] for entry in runtime["spec"]["supportedModelFormats"]
    }
    assert predictor["model"]["protocolVersion"] in runtime["spec"]["protocolVersions"]
    everything = {**runtime["metadata"].get("annotations", {}), **runtime["spec"].get("annotations", {})}
    assert not any("server-type" in key for key in everything)


@every_overlay
def test_no_container_is_root_or_may_become_it(render: Render, overlay: str) -> None:
    containers = render(overlay)["ServingRuntime"]["spec"]["containers"]
    assert [container["name"] for container in containers] == ["kserve-container"]
    for container in containers:
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] >= 1000
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "privileged" not in context
        assert set(container["resources"]["requests"]) <= set(container["resources"]["limits"])
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])


@every_overlay
def test_the_pod_holds_no_token_and_no_host(render: Render, overlay: str) -> None:
    resources = render(overlay)
    predictor = resources["InferenceService"]["spec"]["predictor"]
    assert predictor["automountServiceAccountToken"] is False
    assert resources["ServiceAccount"]["automountServiceAccountToken"] is False
    assert predictor["serviceAccountName"] == resources["ServiceAccount"]["metadata"]["name"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(predictor)
    volumes = resources["ServingRuntime"]["spec"]["volumes"]
    settings = {"name": "settings", "configMap": {"name": resources["ConfigMap"]["metadata"]["name"]}}
    assert volumes.count(settings) == 1
    others = [volume for volume in volumes if volume != settings]
    assert all("emptyDir" in volume and "sizeLimit" in volume["emptyDir"] for volume in others)


@every_overlay
def test_settings_come_from_the_config_map(render: Render, overlay: str, tmp_path: Path) -> None:
    resources = render(overlay)
    container = resources["ServingRuntime"]["spec"]["containers"][0]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "settings"]
    assert mount["readOnly"] is True
    (file,) = resources["ConfigMap"]["data"]
    named = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert named["THINKTWICE_SERVING"] == f"{mount['mountPath']}/{file}"
    (tmp_path / file).write_text(resources["ConfigMap"]["data"][file])
    found = load_config(tmp_path / file)
    assert (found.metrics_host, found.metrics_port) == ("0.0.0.0", 8082)
    assert found == load_config(ROOT / "images" / "predictor" / "serving.yaml")


@every_overlay
def test_every_writable_place_of_the_image_is_a_volume(render: Render, overlay: str) -> None:
    container = render(overlay)["ServingRuntime"]["spec"]["containers"][0]
    assert {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == {
        "/tmp",
        "/var/lib/predictor/work",
        "/var/lib/predictor/logs",
    }


@every_overlay
def test_the_policy_lets_nobody_reach_management(render: Render, overlay: str) -> None:
    resources = render(overlay)
    spec = resources["NetworkPolicy"]["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    ports = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
    expected = {8012, 8013, 8112, 9090, 8082, 9091} if overlay.startswith("knative") else {8080, 8082}
    expected |= {8080} if "-kserve" in overlay else set()
    assert ports == expected
    if overlay.startswith("knative"):  # 8080 passes by the queue proxy's limit: nobody but a reader of metrics
        names = [
            source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for rule in spec["ingress"]
            for source in rule["from"]
            if 8080 in [port["port"] for port in rule["ports"]]
        ]
        assert set(names) <= {"monitoring"}
    assert all(rule["from"] for rule in spec["ingress"]), "a rule without `from` lets everybody in"
    name = resources["InferenceService"]["metadata"]["name"]
    assert spec["podSelector"]["matchLabels"]["serving.kserve.io/inferenceservice"] == name


@every_overlay
def test_a_budget_stands_over_at_least_two_replicas(render: Render, overlay: str) -> None:
    resources = render(overlay)
    isvc, budget = resources["InferenceService"], resources["PodDisruptionBudget"]
    assert isvc["spec"]["predictor"]["minReplicas"] >= 2
    if not overlay.startswith("knative"):
        cluster = Cluster()
        cluster.apply(resources)
        assert cluster.autoscalers["ctr-predictor"][0] == 2, "KServe takes the canary's replicas off the stable minimum"
    selector = budget["spec"]["selector"]["matchLabels"]
    if overlay.startswith("knative"):
        assert selector == {"serving.knative.dev/service": f"{isvc['metadata']['name']}-predictor"}
    else:
        assert selector == {"serving.kserve.io/inferenceservice": isvc["metadata"]["name"], "component": "predictor"}


@pytest.mark.parametrize("cluster_default", ["true", "false"])
@every_overlay
def test_the_announced_metrics_are_where_the_predictor_shows_them(
    render: Render, overlay: str, cluster_default: str, tmp_path: Path
) -> None:
    """Whatever the cluster's configuration says about scraping: in Standard mode there is no queue proxy with a port of its own."""
    resources = render(overlay)
    runtime = resources["ServingRuntime"]
    found = kserve_controller.announced(resources["InferenceService"], runtime, cluster_default)
    if overlay.startswith("knative"):
        assert found == {"port": "9091", "path": "/metrics"}
        return
    (tmp_path / "serving.yaml").write_text(resources["ConfigMap"]["data"]["serving.yaml"])
    workers = load_config(tmp_path / "serving.yaml").metrics_port
    door = [a.removeprefix("--port=") for a in runtime["spec"]["containers"][0]["args"] if a.startswith("--port=")]
    assert found == {"scrape": "true", "port": door[0] if door else str(workers), "path": "/metrics"}
    assert found["port"] == runtime["spec"]["annotations"]["prometheus.kserve.io/port"]
    monitoring = [
        port["port"]
        for rule in resources["NetworkPolicy"]["spec"]["ingress"]
        for source in rule["from"]
        if source.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name") == "monitoring"
        for port in rule["ports"]
    ]
    assert int(found["port"]) in monitoring, "the network policy lets Prometheus in there"


@every_overlay
def test_what_the_predictor_may_reach(render: Render, overlay: str) -> None:
    """Every rule of the way out; manifests/README.md says the same in words."""
    dns, store, inside = render(overlay)["NetworkPolicy"]["spec"]["egress"]
    both = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    assert dns["ports"] == both
    kube_system = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    assert dns["to"] == [kube_system, {"ipBlock": {"cidr": "169.254.20.10/32"}}]
    assert store["ports"] == [{"port": 443, "protocol": "TCP"}]
    open_to = [block["ipBlock"] for block in store["to"]]
    assert [block["cidr"] for block in open_to] == ["0.0.0.0/0", "::/0"]
    credentials = ipaddress.ip_address("169.254.169.254")
    assert any(credentials in ipaddress.ip_network(cidr) for block in open_to for cidr in block["except"])
    assert inside == {"to": [{"namespaceSelector": {"matchLabels": {"ctr.example.org/serves-predictor": "true"}}}]}


def test_every_overlay_is_tested() -> None:
    folders = {path.name for path in (ROOT / "manifests" / "overlays").iterdir()}
    elsewhere = {"standard-log", "rollout-access"}  # test_prediction_log.py, tests/cluster/test_role.py
    assert folders == {*OVERLAYS, *PLATFORM, *elsewhere}


def test_every_component_is_in_an_overlay() -> None:
    files = (ROOT / "manifests" / "overlays").rglob("kustomization.yaml")
    used = {Path(c).name for file in files for c in yaml.safe_load(file.read_text()).get("components", [])}
    assert used == {path.name for path in (ROOT / "manifests" / "components").iterdir()}


def test_the_namespace_is_in_no_overlay_and_enforces_a_pod_standard() -> None:
    namespace = yaml.safe_load((ROOT / "manifests" / "namespace.yaml").read_text())
    assert misfit(namespace, "1.34") == ""
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] in ("baseline", "restricted")
    assert labels["pod-security.kubernetes.io/warn"] == labels["pod-security.kubernetes.io/audit"] == "restricted"


@pytest.mark.parametrize("canary_first", [True, False])
@pytest.mark.parametrize("overlay", ["standard", "standard-kserve"])
def test_a_cluster_local_service_cannot_be_built_with_a_canary(
    tmp_path: Path, overlay: str, canary_first: bool
) -> None:
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    components = ["standard-canary", "standard-cluster-local"]
    text = yaml.safe_dump(
        {
            "resources": [f"../manifests/overlays/{overlay}"],
            "components": [f"../manifests/components/{name}" for name in sorted(components, reverse=not canary_first)],
        }
    )
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "kustomization.yaml").write_text(text)
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path / "own")], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "test failed" in done.stderr
