"""The rules of KServe's webhooks and controllers that its schema cannot say, and our own.

A schema accepts every manifest here: the first group is refused by a cluster at admission, the second is accepted and then
silently does something else than it says.
"""

from __future__ import annotations

import re
from typing import Any

MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
VISIBILITY = {"Standard": "networking.kserve.io/visibility", "Knative": "networking.knative.dev/visibility"}
AUTOSCALERS = {"Standard": {"hpa", "keda", "external", "none"}, "Knative": {"kpa", "hpa"}}
METRICS = {"hpa": {"cpu", "memory"}, "kpa": {"concurrency", "rps"}}
ANNOTATIONS = {
    MODE: {"Standard", "Knative"},
    AUTOSCALER: {"hpa", "kpa", "keda", "external", "none"},
    "serving.kserve.io/enable-tag-routing": {"true", "false"},
    "serving.kserve.io/enable-prometheus-scraping": {"true", "false"},
    "serving.kserve.io/enable-metric-aggregation": {"true", "false"},
}
NOT_ON_A_CANARY = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling", "workerSpec")
STORAGE = ("s3://", "gs://", "pvc://", "oci://", "hf://", "file://", "https://", "hdfs://")
DNS_LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")


def refused(isvc: dict[str, Any]) -> list[str]:
    """Why KServe's webhooks would refuse this InferenceService; empty when they would not."""
    spec, metadata = isvc["spec"], isvc["metadata"]
    annotations, predictor = metadata.get("annotations", {}), spec["predictor"]
    found = []
    if not DNS_LABEL.match(metadata["name"]):
        found.append(f"name {metadata['name']!r} is no DNS label")
    for key, value in annotations.items():
        if key in ANNOTATIONS and value not in ANNOTATIONS[key]:
            found.append(f"annotation {key}: {value!r} is none of {sorted(ANNOTATIONS[key])}")
    least, most = predictor.get("minReplicas", 1), predictor.get("maxReplicas", 0)
    if least < 0 or most < 0 or (most and least > most):
        found.append(f"minReplicas {least} and maxReplicas {most} do not fit")
    if not str(predictor.get("model", {}).get("storageUri", STORAGE[0])).startswith(STORAGE):
        found.append(f"storageUri {predictor['model']['storageUri']!r} has no known scheme")
    if not 0 <= predictor.get("canaryTrafficPercent", 0) <= 100:
        found.append(f"canaryTrafficPercent {predictor['canaryTrafficPercent']} is not in 0..100")
    return found + _canary_refused(spec, annotations)


def _canary_refused(spec: dict[str, Any], annotations: dict[str, str]) -> list[str]:
    canaries = spec.get("canary", [])
    found = []
    if canaries and annotations.get(MODE) != "Standard":
        found.append("spec.canary needs the annotation deploymentMode Standard")
    names = [canary["predictor"].get("name", "") for canary in canaries]
    if "" in names:
        found.append("a canary has no name")
    if len({*names, spec["predictor"].get("name", "")}) != len(names) + 1:
        found.append(f"names of the canaries {names} are not unique, or one is the stable predictor's")
    shares = [canary["trafficPercent"] for canary in canaries]
    if any(not 0 <= share <= 100 for share in shares) or sum(shares) > 100:
        found.append(f"trafficPercent {shares}: each in 0..100, at most 100 together")
    for canary in canaries:
        predictor = canary["predictor"]
        found += [f"a canary may not set {field}" for field in NOT_ON_A_CANARY if field in predictor]
        if predictor.get("minReplicas", 0) > spec["predictor"].get("minReplicas", 1):
            found.append("a canary has more minReplicas than the stable predictor")
    return found


def ignored(isvc: dict[str, Any]) -> list[str]:
    """What a cluster would accept and then not do as written; empty when every setting takes effect."""
    spec, metadata = isvc["spec"], isvc["metadata"]
    annotations, labels = metadata.get("annotations", {}), metadata.get("labels", {})
    predictor = spec["predictor"]
    mode = annotations.get(MODE)
    if mode not in VISIBILITY:
        return [f"annotation {MODE} is {mode!r}: the cluster's default would decide the mode"]
    found = []
    if "canaryTrafficPercent" in predictor and mode != "Knative":
        found.append("canaryTrafficPercent has no effect outside Knative")
    if "transformer" in spec and ("canary" in spec or "canaryTrafficPercent" in predictor):
        found.append("a canary and a transformer do not compose")
    if "canary" in spec and labels.get(VISIBILITY["Standard"]) == "cluster-local":
        found.append("a cluster-local service has no HTTPRoute, so its canary gets no traffic")
    other = VISIBILITY["Knative" if mode == "Standard" else "Standard"]
    if other in labels:
        found.append(f"label {other} belongs to the other mode")
    autoscaler = annotations.get(AUTOSCALER, "hpa" if mode == "Standard" else "kpa")
    if autoscaler not in AUTOSCALERS[mode]:
        found.append(f"autoscaler {autoscaler} does not exist in {mode}")
    metric = predictor.get("scaleMetric")
    if metric and metric not in METRICS.get(autoscaler, {metric}):
        found.append(f"scaleMetric {metric} is unknown to the autoscaler {autoscaler}")
    if any("server-type" in key for key in annotations):
        found.append("annotation server-type would hand the service to KServe's stock TorchServe code")
    return found


def storage_uris(isvc: dict[str, Any]) -> list[str]:
    """The ``storageUri`` of the stable predictor and of every canary."""
    predictors = [isvc["spec"]["predictor"], *(canary["predictor"] for canary in isvc["spec"].get("canary", []))]
    return [predictor["model"]["storageUri"] for predictor in predictors if "model" in predictor]
