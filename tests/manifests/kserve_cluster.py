"""A namespace with KServe in Standard mode, as far as rollouts go: applied objects in, Deployments, Services and routes out.

Follows predictor.go (reconcileRawDeployment, reconcileCanaryDeployments), deployment_reconciler.go and httproute_reconciler.go of
KServe after v0.20.0, and what was seen on Kubernetes 1.34: orphaned Deployments and Services are deleted, autoscalers and routes are not.
It starts no pod and tells nothing about time.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from tests.manifests import kserve_admission, kserve_controller
from tests.manifests.kserve_controller import VISIBILITY, workload_name

Object = dict[str, Any]

#: constants.go: ServiceAnnotationDisallowedList.
NOT_ON_PODS = ("autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/max-scale")
#: Fields of a predictor that are no fields of a pod.
NOT_OF_THE_POD = {
    *("model", "name", "labels", "annotations", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout"),
    *("containerConcurrency", "canaryTrafficPercent", "autoScaling", "deploymentStrategy"),
}


class RefusedError(Exception):
    """Admission said no; nothing was stored."""


@dataclass
class Cluster:
    """State of the namespace.

    Attributes:
        runtimes, isvc: what was applied; an object that a later ``apply`` no longer names stays.
        deployments: pod template by name.
        services: names of Services.
        autoscalers: (least, most) replicas by name of the Deployment.
        routes: backends with their weights, by name of the HTTPRoute.
        gateway: whether KServe's ingress uses the Gateway API.
    """

    gateway: bool = True
    runtimes: dict[str, Object] = field(default_factory=dict)
    isvc: Object | None = None
    deployments: dict[str, Object] = field(default_factory=dict)
    services: set[str] = field(default_factory=set)
    autoscalers: dict[str, tuple[int, int]] = field(default_factory=dict)
    routes: dict[str, dict[str, int]] = field(default_factory=dict)

    def apply(self, resources: dict[str, Object]) -> None:
        """``kubectl apply`` of the rendered objects by kind, then KServe's controller until it has nothing left to do.

        Raises:
            RefusedError: a webhook refuses an object.
        """
        isvc, runtime = copy.deepcopy(resources["InferenceService"]), resources["ServingRuntime"]
        others = [other for other in self.runtimes.values() if other["metadata"]["name"] != runtime["metadata"]["name"]]
        reasons = kserve_admission.runtime_refused(runtime, others) + kserve_admission.refused(isvc)
        reasons += kserve_admission.update_refused(self.isvc, isvc) if self.isvc else []
        if reasons:
            raise RefusedError("; ".join(reasons))
        self.runtimes[runtime["metadata"]["name"]] = runtime
        self.isvc = isvc
        if list(kserve_controller.never_ready(isvc, self.runtimes)):
            return  # the controller stops at the error and leaves everything as it is
        self._reconcile(isvc)

    def _reconcile(self, isvc: Object) -> None:
        stable, canaries = isvc["spec"]["predictor"], isvc["spec"].get("canary", [])
        least, replicas = stable.get("minReplicas", 1), {}
        for canary in canaries:
            share = -(-least * canary["trafficPercent"] // 100)
            replicas[workload_name(isvc, canary["predictor"])] = canary["predictor"].get("minReplicas", share)
        name = workload_name(isvc, stable)
        self.deployments[name] = self._template(isvc, stable)
        self.autoscalers[name] = (
            (max(least - sum(replicas.values()), 1), stable.get("maxReplicas", 0))
            if canaries
            else (
                least,
                stable.get("maxReplicas", 0),
            )
        )
        for canary in canaries:
            merged = merge(stable, canary["predictor"])
            own = workload_name(isvc, merged)
            self.deployments[own] = self._template(isvc, merged)
            self.autoscalers[own] = (replicas[own], replicas[own])
        expected = {name, *replicas}
        self.deployments = {key: value for key, value in self.deployments.items() if key in expected}
        self.services = expected
        if self.gateway and isvc["metadata"].get("labels", {}).get(VISIBILITY["Standard"]) != "cluster-local":
            weights = {workload_name(isvc, c["predictor"]): c["trafficPercent"] for c in canaries}
            weights = {name: 100 - sum(weights.values()), **weights}
            self.routes = {isvc["metadata"]["name"]: weights, name: dict(weights)}

    def _template(self, isvc: Object, predictor: Object) -> Object:
        """predictor.go: buildObjectMeta, and the pod of runtime and predictor; later maps win."""
        runtime = self.runtimes[predictor["model"]["runtime"]]["spec"]
        annotations: dict[str, str] = {}
        for source in (
            runtime.get("annotations", {}),
            isvc["metadata"].get("annotations", {}),
            predictor.get("annotations", {}),
        ):
            annotations |= {key: value for key, value in source.items() if key not in NOT_ON_PODS}
        labels: dict[str, str] = {}
        for source in (runtime.get("labels", {}), isvc["metadata"].get("labels", {}), predictor.get("labels", {})):
            labels |= source
        labels["app"] = f"isvc.{workload_name(isvc, predictor)}"
        labels["serving.kserve.io/inferenceservice"], labels["component"] = isvc["metadata"]["name"], "predictor"
        pod = {key: value for key, value in predictor.items() if key not in NOT_OF_THE_POD}
        model = {
            key: value for key, value in predictor["model"].items() if key in ("env", "args", "resources", "image")
        }
        return copy.deepcopy(
            {
                "labels": labels,
                "annotations": annotations,
                "storageUri": predictor["model"]["storageUri"],
                "spec": {
                    **pod,
                    "containers": runtime["containers"],
                    "volumes": runtime.get("volumes", []),
                    "model": model,
                },
            }
        )

    def template_hash(self, name: str) -> str:
        """Two pods of equal hash are one and the same to a Deployment: nothing is replaced."""
        return hashlib.sha256(json.dumps(self.deployments[name], sort_keys=True).encode()).hexdigest()

    def dead_backends(self) -> set[str]:
        """Services that a route sends requests to and that are not there: their share of the requests gets 503."""
        used = {name for weights in self.routes.values() for name, weight in weights.items() if weight}
        return used - self.services

    def orphans(self) -> set[str]:
        """Objects that nothing uses any more and nobody deletes, as ``kind/name``."""
        named = {p["model"].get("runtime") for p in kserve_controller.predictors(self.isvc)} if self.isvc else set()
        runtimes = {f"servingruntime/{name}" for name in self.runtimes if name not in named}
        return runtimes | {f"hpa/{name}" for name in self.autoscalers if name not in self.deployments}


def merge(stable: Object, canary: Object) -> Object:
    """predictor.go: buildCanaryPredictor. Maps are merged, everything else of the canary wins, the autoscaler's fields go."""

    def over(one: Any, two: Any) -> Any:
        if isinstance(one, dict) and isinstance(two, dict):
            return {**one, **{key: over(one[key], value) if key in one else value for key, value in two.items()}}
        return two

    merged: Object = over(copy.deepcopy(stable), copy.deepcopy(canary))
    return {
        key: value
        for key, value in merged.items()
        if key not in ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")
    }
