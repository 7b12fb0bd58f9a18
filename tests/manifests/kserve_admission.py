"""What KServe's admission webhooks refuse, beyond its schema, in the fields that the manifests here set.

Read in KServe's source after its tag v0.20.0 (August 2026); each rule names its file and function. Rules of v0.20.0 itself are the
same unless the rule says otherwise. Left out are the rules about fields that no manifest here sets: ``workerSpec``, ``confidential``,
``explainer`` (a test keeps it so).

An object that is accepted may still never become ready, or do something else than it says: see ``kserve_controller``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Object = dict[str, Any]

MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
KNATIVE_AUTOSCALER = "autoscaling.knative.dev/class"
#: pkg/constants/constants.go: AutoscalerAllowedClassList. Knative's own "kpa" is no class of KServe's.
AUTOSCALERS = ("hpa", "external", "keda", "none")
HPA_METRICS = ("cpu", "memory")
KPA_METRICS = ("concurrency", "rps")
LEGACY_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
#: pkg/apis/serving/v1beta1/predictor.go: GetImplementations.
FRAMEWORKS = (
    "xgboost",
    "pytorch",
    "triton",
    "sklearn",
    "tensorflow",
    "onnx",
    "pmml",
    "lightgbm",
    "paddle",
    "huggingface",
    "model",
)
CONTAINER, TRANSFORMER_CONTAINER = "kserve-container", "transformer-container"
NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
#: pkg/validation/env_policy.go: DefaultBlockedEnvVars, since v0.18.0.
BLOCKED_ENVIRONMENT = ("PYTHONPATH",)

Rule = Callable[[Object], Iterator[str]]


def defaulted(isvc: Object) -> Object:
    """The object as the mutating webhook hands it on (inference_service_defaults.go): old names of the modes become new ones."""
    isvc = copy.deepcopy(isvc)
    annotations = isvc["metadata"].get("annotations", {})
    if annotations.get(MODE) in LEGACY_MODES:
        annotations[MODE] = LEGACY_MODES[annotations[MODE]]
    return isvc


def _annotations(isvc: Object) -> dict[str, str]:
    return isvc["metadata"].get("annotations", {})


def _implementations(component: Object) -> int:
    found = sum(framework in component for framework in FRAMEWORKS)
    containers = component.get("containers", [])
    found += sum(container.get("name") == CONTAINER for container in containers)
    return found or int(bool(containers))


def service_name(isvc: Object) -> Iterator[str]:
    """inference_service_validation.go: validateInferenceServiceName."""
    if not NAME.match(isvc["metadata"]["name"]):
        yield f"the name {isvc['metadata']['name']!r} does not match {NAME.pattern}"


def autoscaler_class(isvc: Object) -> Iterator[str]:
    """inference_service_validation.go: validateInferenceServiceAutoscaler; the need of metrics for keda is newer than v0.20.0."""
    value = _annotations(isvc).get(AUTOSCALER)
    if value is not None and value not in AUTOSCALERS:
        yield f"[{value}] is not a supported autoscaler class type: use one of {', '.join(AUTOSCALERS)}, or leave it out"
    components = [isvc["spec"][part] for part in ("predictor", "transformer") if part in isvc["spec"]]
    if value == "keda" and not any("autoScaling" in component for component in components):
        yield "the autoscaler class keda needs autoScaling in the predictor or the transformer"


def blocked_environment(isvc: Object) -> Iterator[str]:
    """inference_service_validation.go: validateBlockedEnvVars (pkg/validation/env_policy.go)."""
    for part in ("predictor", "transformer"):
        component = isvc["spec"].get(part, {})
        models = [component[name] for name in FRAMEWORKS if part == "predictor" and name in component]
        for container in [*component.get("containers", []), *component.get("initContainers", []), *models]:
            yield from _blocked(container)


def _blocked(container: Object) -> Iterator[str]:
    for entry in container.get("env", []):
        if entry["name"] in BLOCKED_ENVIRONMENT:
            yield f"the environment variable {entry['name']} is not allowed"


def collocated_transformer(isvc: Object) -> Iterator[str]:
    """inference_service_validation.go: validateCollocationStorageURI."""
    for container in isvc["spec"]["predictor"].get("containers", []):
        names = [entry["name"] for entry in container.get("env", [])]
        if container.get("name") == TRANSFORMER_CONTAINER and "STORAGE_URI" in names:
            yield "a transformer container may not set STORAGE_URI"


def stable_model_name(isvc: Object) -> Iterator[str]:
    """inference_service_validation.go: validatePredictor. The schema requires the same field in a canary."""
    predictor = isvc["spec"]["predictor"]
    if any(predictor[name].get("name") for name in FRAMEWORKS if name in predictor):
        yield "model.name is not allowed in the stable predictor"


def one_source(isvc: Object) -> Iterator[str]:
    """inference_service_validation.go: validateMultipleStorageURIs, validateStorageURISpec."""
    for part in ("predictor", "transformer"):
        component = isvc["spec"].get(part, {})
        several = component.get("storageUris")
        if several is None:
            continue
        if any("storageUri" in component[name] for name in FRAMEWORKS if name in component):
            yield "storageUri and storageUris exclude each other"
        for entry in several:
            path = entry.get("mountPath", "/mnt/models")
            if not entry.get("uri") or path == "/" or not path.startswith("/") or ".." in path:
                yield f"storageUris: {entry} needs a uri and an absolute mountPath below /"


def one_implementation(isvc: Object) -> Iterator[str]:
    """component.go: validateExactlyOneImplementation, also for every canary."""
    canaries = [canary["predictor"] for canary in isvc["spec"].get("canary", [])]
    for component in (isvc["spec"]["predictor"], *canaries):
        if (found := _implementations(component)) != 1:
            yield f"exactly one model must be specified, here are {found}"


def bounds(isvc: Object) -> Iterator[str]:
    """component.go: ComponentExtensionSpec.Validate, also for every canary."""
    canaries = [canary["predictor"] for canary in isvc["spec"].get("canary", [])]
    transformers = [isvc["spec"]["transformer"]] if "transformer" in isvc["spec"] else []
    for component in (isvc["spec"]["predictor"], *transformers, *canaries):
        least, most = component.get("minReplicas", 1), component.get("maxReplicas", 0)
        if least < 0 or most < 0 or (most and least > most):
            yield f"minReplicas {least} and maxReplicas {most} do not fit"
        if component.get("containerConcurrency", 0) < 0:
            yield "containerConcurrency is below 0"
        if "logger" in component and component["logger"].get("mode") not in ("all", "request", "response"):
            yield f"logger mode {component['logger'].get('mode')!r} is none of all, request, response"


def scaling(isvc: Object) -> Iterator[str]:
    """inference_service_validation.go: validateAutoScalingCompExtension. In Standard mode only a named class is checked."""
    annotations = _annotations(isvc)
    standard, named = annotations.get(MODE) == "Standard", annotations.get(AUTOSCALER)
    for part in ("predictor", "transformer"):
        if part not in isvc["spec"]:
            continue
        component = isvc["spec"][part]
        if standard and named == "keda":
            if "scaleMetric" in component:
                yield "scaleMetric is not supported with keda"
        elif (standard and named == "hpa") or (
            not standard and annotations.get(KNATIVE_AUTOSCALER) == "hpa.autoscaling.knative.dev"
        ):
            yield from _hpa(component)
        elif not standard:
            yield from _kpa(component)


def _hpa(component: Object) -> Iterator[str]:
    metric, target = component.get("scaleMetric", "cpu"), component.get("scaleTarget")
    if metric not in HPA_METRICS:
        yield f"[{metric}] is not a supported metric: use one of {', '.join(HPA_METRICS)}"
    if target is not None and (target < 1 or target > 100):  # above 100 is refused for memory too
        yield f"scaleTarget {target} is not in 1..100"
    for entry in component.get("autoScaling", {}).get("metrics", []):
        if entry.get("type") != "Resource" or "resource" not in entry:
            yield "an HPA takes metrics of type Resource only"


def _kpa(component: Object) -> Iterator[str]:
    metric, target = component.get("scaleMetric", "concurrency"), component.get("scaleTarget")
    if "deploymentStrategy" in component:
        yield "deploymentStrategy exists in Standard mode only"
    if metric not in KPA_METRICS:
        yield f"[{metric}] is not a supported metric: use one of {', '.join(KPA_METRICS)}"
    if metric == "rps" and target is not None and target < 1:
        yield "scaleTarget for rps is below 1"


def canary_mode(isvc: Object) -> Iterator[str]:
    """inference_service_validation.go: validateCanarySpecs, as the rules below."""
    if isvc["spec"].get("canary") and _annotations(isvc).get(MODE) != "Standard":
        yield f"spec.canary needs the annotation {MODE}: Standard"


def canary_names(isvc: Object) -> Iterator[str]:
    """Every canary has a name, and no two predictors have the same."""
    names = [canary["predictor"].get("name", "") for canary in isvc["spec"].get("canary", [])]
    if "" in names:
        yield "a canary has no name"
    if len(set(names)) < len(names) or isvc["spec"]["predictor"].get("name", "") in {*names} - {""}:
        yield f"the names {names} of the canaries are not unique, or one is the stable predictor's"


def canary_shares(isvc: Object) -> Iterator[str]:
    """Shares in 0..100, and no more than 100 together."""
    shares = [canary["trafficPercent"] for canary in isvc["spec"].get("canary", [])]
    if any(not 0 <= share <= 100 for share in shares) or sum(shares) > 100:
        yield f"trafficPercent {shares}: each in 0..100, at most 100 together"


def canary_replicas(isvc: Object) -> Iterator[str]:
    """Fixed replicas, no more than the stable minimum, one node each."""
    stable = isvc["spec"]["predictor"].get("minReplicas", 1)
    for canary in isvc["spec"].get("canary", []):
        predictor = canary["predictor"]
        for field in ("scaleTarget", "scaleMetric", "autoScaling", "workerSpec"):
            if field in predictor:
                yield f"a canary may not set {field}"
        if predictor.get("maxReplicas", 0) > 0:
            yield "a canary may not set maxReplicas"
        if predictor.get("minReplicas", 0) > stable:
            yield f"a canary has more minReplicas than the stable predictor ({stable})"


RULES: tuple[Rule, ...] = (
    service_name,
    autoscaler_class,
    blocked_environment,
    collocated_transformer,
    stable_model_name,
    one_source,
    one_implementation,
    bounds,
    scaling,
    canary_mode,
    canary_names,
    canary_shares,
    canary_replicas,
)


def refused(isvc: Object) -> list[str]:
    """Why KServe's webhooks would refuse this InferenceService, as ``rule: reason``; empty when they would not."""
    isvc = defaulted(isvc)
    return [f"{rule.__name__}: {reason}" for rule in RULES for reason in rule(isvc)]


def update_refused(old: Object, new: Object) -> list[str]:
    """Why KServe would refuse to replace a running InferenceService (inference_service_validation.go: ValidateUpdate)."""
    old, new = defaulted(old), defaulted(new)
    found = []
    before, after = _annotations(old).get(MODE), _annotations(new).get(MODE)
    if before and after and before != after:
        found.append(f"mode_is_kept: {MODE} cannot be changed from {before} to {after}")
    names = [isvc["spec"]["predictor"].get("name", "") for isvc in (old, new)]
    sources = [isvc["spec"]["predictor"].get("model", {}).get("storageUri", "") for isvc in (old, new)]
    if names[0] != names[1] and sources[0] == sources[1]:
        found.append("another_name_another_model: predictor.name changes and storageUri does not")
    return found


def runtime_environment(runtime: Object) -> Iterator[str]:
    """servingruntime_webhook.go: the containers' environment, since v0.18.0."""
    for container in runtime["spec"].get("containers", []):
        yield from _blocked(container)


def runtime_priorities(runtime: Object) -> Iterator[str]:
    """servingruntime_webhook.go: validateModelFormatPrioritySame."""
    seen: dict[str, int] = {}
    for entry in runtime["spec"].get("supportedModelFormats", []):
        chosen = entry.get("autoSelect") and "priority" in entry
        if chosen and seen.setdefault(entry["name"], entry["priority"]) != entry["priority"]:
            yield f"different priorities for the model format {entry['name']}"


RUNTIME_RULES: tuple[Rule, ...] = (runtime_environment, runtime_priorities)


def runtime_refused(runtime: Object, others: Sequence[Object] = ()) -> list[str]:
    """Why KServe's webhook would refuse a ServingRuntime in a namespace that already has ``others``."""
    if runtime["spec"].get("disabled"):
        return []
    found = [f"{rule.__name__}: {reason}" for rule in RUNTIME_RULES for reason in rule(runtime)]
    return found + [f"runtime_conflict: {reason}" for other in others for reason in _conflicts(runtime, other)]


def _conflicts(runtime: Object, other: Object) -> Iterator[str]:
    """servingruntime_webhook.go: validateServingRuntimePriority."""
    new, old = runtime["spec"], other["spec"]
    if old.get("disabled") or runtime["metadata"]["name"] == other["metadata"]["name"]:
        return
    if not set(new.get("protocolVersions", [])) & set(old.get("protocolVersions", [])):
        return
    for one in new.get("supportedModelFormats", []):
        for two in old.get("supportedModelFormats", []):
            same = one["name"].lower() == two["name"].lower() and one.get("version") == two.get("version")
            chosen = one.get("autoSelect") and two.get("autoSelect") and "priority" in one
            if same and chosen and one["priority"] == two.get("priority"):
                yield f"{other['metadata']['name']} has the same priority for the model format {one['name']}"
