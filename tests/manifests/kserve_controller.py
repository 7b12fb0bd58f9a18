"""What KServe's controller makes of what its webhooks accepted: why it would never be ready, and what in it would have no effect.

Read in KServe's source after its tag v0.20.0 (August 2026); the comments name the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.manifests.kserve_admission import AUTOSCALER, CONTAINER, MODE

Object = dict[str, Any]

VISIBILITY = {"Standard": "networking.kserve.io/visibility", "Knative": "networking.knative.dev/visibility"}
SCRAPING, AGGREGATION = "serving.kserve.io/enable-prometheus-scraping", "serving.kserve.io/enable-metric-aggregation"
QUEUE_PROXY_METRICS, AGGREGATED_METRICS = "9091", "9088"
#: Values that KServe compares with one spelling; another value means "no" without a word.
SWITCHES = (SCRAPING, AGGREGATION, "serving.kserve.io/enable-tag-routing", "serving.kserve.io/stop")
#: pkg/controller/v1beta1/inferenceservice/utils/utils.go: SupportedStorageURIPrefixList.
SCHEMES = ("gs://", "s3://", "pvc://", "file://", "https://", "http://", "hdfs://", "webhdfs://", "oci://", "hf://")
BLOB = re.compile(r"^https://(.+?)\.blob\.core\.windows\.net/(.+)")
LABEL = 63  # characters of a label value and of a Service's name


def predictors(isvc: Object) -> list[Object]:
    """The stable predictor and every canary."""
    return [isvc["spec"]["predictor"], *(canary["predictor"] for canary in isvc["spec"].get("canary", []))]


def storage_uris(isvc: Object) -> list[str]:
    """The ``storageUri`` of the stable predictor and of every canary."""
    return [predictor["model"]["storageUri"] for predictor in predictors(isvc) if "model" in predictor]


def workload_name(isvc: Object, predictor: Object) -> str:
    """Name of a predictor's Deployment, Service and autoscaler (pkg/constants/constants.go: PredictorServiceName)."""
    parts = [isvc["metadata"]["name"], predictor.get("name", ""), "predictor"]
    return "-".join(part for part in parts if part)


def never_ready(isvc: Object, runtimes: dict[str, Object]) -> Iterator[str]:
    """Why the controller would not start what the webhooks accepted.

    Args:
        runtimes: ServingRuntimes of the namespace by name.
    """
    stable = isvc["spec"]["predictor"]
    for predictor in predictors(isvc):
        # A canary's fields are laid over the stable predictor's (predictor.go: buildCanaryPredictor).
        model = {**stable.get("model", {}), **predictor.get("model", {})}
        yield from _runtime(model, runtimes)
        if not _known_scheme(model.get("storageUri", "s3://")):
            yield f"storageUri {model['storageUri']!r} has no supported scheme"
        name = workload_name(isvc, predictor)
        # deployment_reconciler.go: the label `app: isvc.NAME`; Kubernetes: names of Services.
        if len(f"isvc.{name}") > LABEL:
            yield f"the name {name} is too long: isvc.{name} must be a label value of {LABEL} characters"
        if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
            yield f"{name} cannot be the name of a Service"


def _runtime(model: Object, runtimes: dict[str, Object]) -> Iterator[str]:
    """predictor.go: reconcileModel, buildPodSpec; predictor_model.go: RuntimeSupportsModel."""
    named = model.get("runtime")
    if named is None:
        yield "no runtime is named, and ours are never chosen by themselves"
        return
    if named not in runtimes:
        yield f"No ServingRuntimes or ClusterServingRuntimes with the name: {named}"
        return
    spec = runtimes[named]["spec"]
    if spec.get("disabled"):
        yield f"runtime {named} is disabled"
    if model.get("protocolVersion", "v1") not in spec.get("protocolVersions", []):
        yield f"runtime {named} does not support the protocol {model.get('protocolVersion', 'v1')}"
    wanted = (model["modelFormat"]["name"], model["modelFormat"].get("version"))
    offered = {(entry["name"], entry.get("version")) for entry in spec.get("supportedModelFormats", [])}
    if wanted not in offered | {(name, None) for name, _ in offered}:
        yield f"runtime {named} does not support the model format {wanted}"
    if CONTAINER not in [container["name"] for container in spec.get("containers", [])]:
        yield f"runtime {named} has no container {CONTAINER}"
    if "{{" in str(spec.get("containers")):
        yield f"runtime {named}: {{{{ begins a template of KServe's"


def _known_scheme(uri: str) -> bool:
    if not re.search(r"\w+?://", uri):
        return True  # a path
    return bool(BLOB.match(uri)) if "blob.core.windows.net" in uri else uri.startswith(SCHEMES)


def ignored(isvc: Object) -> Iterator[str]:
    """What a cluster would accept and then not do as written."""
    spec, metadata = isvc["spec"], isvc["metadata"]
    annotations, labels = metadata.get("annotations", {}), metadata.get("labels", {})
    predictor = spec["predictor"]
    mode = annotations.get(MODE)
    if mode not in VISIBILITY:
        yield f"annotation {MODE} is {mode!r}: an old name, or the cluster's default would decide the mode"
        return
    for switch in SWITCHES:
        if annotations.get(switch, "true") not in ("true", "false"):
            yield f"annotation {switch} is {annotations[switch]!r}, which means false"
    if "canaryTrafficPercent" in predictor and mode != "Knative":
        yield "canaryTrafficPercent has no effect outside Knative"
    if not 0 <= predictor.get("canaryTrafficPercent", 0) <= 100:
        yield f"canaryTrafficPercent {predictor['canaryTrafficPercent']} is not in 0..100"
    if "transformer" in spec and ("canary" in spec or "canaryTrafficPercent" in predictor):
        yield "a canary and a transformer do not compose"
    # httproute_reconciler.go: nothing is done for a cluster-local service, so routes of before stay as they are.
    if "canary" in spec and labels.get(VISIBILITY["Standard"]) == "cluster-local":
        yield "a cluster-local service has no HTTPRoute, so its canary gets no traffic"
    other = VISIBILITY["Knative" if mode == "Standard" else "Standard"]
    if other in labels:
        yield f"label {other} belongs to the other mode"
    if mode == "Knative" and AUTOSCALER in annotations:
        yield f"annotation {AUTOSCALER} has no effect in Knative"
    if mode == "Standard" and AUTOSCALER not in annotations:
        yield f"annotation {AUTOSCALER} is missing: KServe then checks nothing of the scaling"
    if any("server-type" in key for key in annotations):
        yield "annotation server-type would hand the service to KServe's stock TorchServe code"


def announced(isvc: Object, runtime: Object, cluster_default: str = "false") -> dict[str, str]:
    """Metrics annotations of a pod (``scrape``, ``port``, ``path``) as a Prometheus finds them.

    pkg/webhook/admission/pod/metrics_aggregate_injector.go: where scraping is on, port and path are overwritten; where the annotation
    is absent, the cluster's configuration decides. Nothing there writes ``prometheus.io/scrape``.
    """
    annotations = {
        **runtime["spec"].get("annotations", {}),
        **isvc["metadata"].get("annotations", {}),
        **isvc["spec"]["predictor"].get("annotations", {}),
    }
    if annotations.get(SCRAPING, cluster_default) == "true":
        aggregated = annotations.get(AGGREGATION) == "true"
        annotations["prometheus.io/port"] = AGGREGATED_METRICS if aggregated else QUEUE_PROXY_METRICS
        annotations["prometheus.io/path"] = "/metrics"
    keys = ("scrape", "port", "path")
    return {key: annotations[f"prometheus.io/{key}"] for key in keys if f"prometheus.io/{key}" in annotations}
