"""The objects of a roll-out as pure functions, and names that follow from a version. Nothing here talks to a cluster."""

from __future__ import annotations

import copy
import re
from typing import Literal

from pydantic import Field, field_validator

from components.cluster.client import Json, Resource
from thinktwice.errors import RolloutError
from thinktwice.files import sha256_text
from thinktwice.frozen import Frozen
from thinktwice.release.model_store import version_folder

SERVICES = Resource(
    "serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService", "install KServe 0.20 or later"
)
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
REVISIONS = Resource("serving.knative.dev", "v1", "revisions", "Revision", "install Knative Serving")
ROUTES = Resource(
    "gateway.networking.k8s.io",
    "v1",
    "httproutes",
    "HTTPRoute",
    "install the Gateway API and set enableGatewayApi: true in KServe's ConfigMap inferenceservice-config, or use --form gateway",
)
SCALERS = Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
PODS = Resource("", "v1", "pods", "Pod")
EVENTS = Resource("", "v1", "events", "Event")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")

MANAGER = "thinktwice-rollout"  # field manager of everything that a roll-out applies
PART_OF = {"app.kubernetes.io/part-of": "thinktwice", "app.kubernetes.io/managed-by": MANAGER}
MODE = "serving.kserve.io/deploymentMode"
TAGS = "serving.kserve.io/enable-tag-routing"
VERSION_LABEL, VARIANT_LABEL = "ctr.example.org/model-version", "ctr.example.org/variant"
ARM_LABEL = "ctr.example.org/arm"
SERVICE_LABEL = "serving.kserve.io/inferenceservice"
VISIBILITY = "networking.kserve.io/visibility"
CONTAINER = "kserve-container"
SCHEMES = ("gs://", "s3://", "pvc://", "file://", "https://", "http://", "hdfs://", "webhdfs://", "oci://", "hf://")
LONGEST_NAME = 44  # characters of a canary's name: `isvc.SERVICE-NAME-predictor` is a label value of at most 63

Form = Literal["gateway", "knative", "standard"]


class Version(Frozen):
    """A model version in a store.

    Attributes:
        name: of the version's folder, which is also the value of the pods' label.
        uri: ``storageUri`` of the folder.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
    uri: str

    @field_validator("uri")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value.startswith(SCHEMES):
            raise ValueError(f"{value!r} is not a URI that KServe reads ({', '.join(SCHEMES)})")
        if not re.fullmatch(r"[!-~]{1,1024}", value):
            raise ValueError(f"{value!r} has characters that a URI does not have")
        return value


def version_at(uri: str) -> Version:
    """The version in a folder, which is named by it, as ``thinktwice bundle push`` writes it.

    Raises:
        RolloutError: it is not the URI of a version's folder.
    """
    name = uri.rstrip("/").rpartition("/")[2]
    if not uri.startswith(SCHEMES) or version_folder(name) != name or not name:
        raise RolloutError(
            f"{uri!r} is not the folder of a version: give the storageUri that `thinktwice bundle push` prints, e.g. s3://models/ctr/VERSION/"
        )
    return Version(name=name, uri=uri)


def canary_name(service: str, version: str) -> str:
    """Name of a canary predictor: part of the names of its Deployment and Service, different for different versions."""
    longest = min(LONGEST_NAME, 63 - len(f"isvc.{service}--predictor"))
    allowed = re.sub(r"[^a-z0-9-]", "-", version.lower()).strip("-")
    if allowed == version and len(version) <= longest:
        return version
    return f"{allowed[: longest - 9].strip('-')}-{sha256_text(version)[:8]}".lstrip("-")


def workload(service: str, canary: str = "") -> str:
    """Name of the Deployment, Service and autoscaler of a predictor."""
    return "-".join(part for part in (service, canary, "predictor") if part)


def host(namespace: str, name: str) -> str:
    """Address of a Service inside the cluster."""
    return f"{name}.{namespace}.svc.cluster.local"


def service_patch(
    service: str, predictor: Json, *, annotations: dict[str, str] | None = None, canary: list[Json] | None = None
) -> Json:
    """What a roll-out says about an InferenceService, for server-side apply: nothing that it does not own."""
    metadata: Json = {"name": service}
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": SERVICES.api_version,
        "kind": SERVICES.kind,
        "metadata": metadata,
        "spec": {"predictor": predictor} | ({"canary": canary} if canary else {}),
    }


def stable_predictor(version: Version | None, min_replicas: int | None) -> Json:
    """Fields of the stable predictor; None leaves them to whoever else has set them."""
    fields: Json = {}
    if min_replicas is not None:
        fields["minReplicas"] = min_replicas
    if version is not None:
        fields["labels"] = {VERSION_LABEL: version.name}
        fields["model"] = {"storageUri": version.uri}
    return fields


def standard_canary(service: str, stable: Json, version: Version, percent: int) -> list[Json]:
    """``spec.canary`` with one entry. Fields that are left out come from the stable predictor.

    Args:
        stable: the stable predictor of the living object; model format and runtime are its own.
    """
    model = stable["model"]
    kept = {key: copy.deepcopy(model[key]) for key in ("runtime", "modelFormat", "protocolVersion") if key in model}
    predictor = {
        "name": canary_name(service, version.name),
        "minReplicas": 1,
        "labels": {VARIANT_LABEL: "canary", VERSION_LABEL: version.name},
        # The schema requires the name of the container here, and KServe refuses it in the stable predictor.
        "model": {"name": CONTAINER, **kept, "storageUri": version.uri},
    }
    return [{"trafficPercent": percent, "predictor": predictor}]


def knative_canary(version: Version, percent: int | None) -> Json:
    """Fields of the predictor of a Knative service: the version of the latest revision and its share; None is all."""
    fields = stable_predictor(version, None)
    if percent is not None:
        fields["canaryTrafficPercent"] = percent
    return fields


def arm_service(control: Json, arm: str, version: Version) -> Json:
    """An InferenceService for an arm: a copy of control that differs in name, labels and model alone."""
    service = control["metadata"]["name"].removesuffix("-control")
    name = f"{service}-{arm}"
    metadata: Json = {"name": name}
    labels = {**control["metadata"].get("labels", {}), **PART_OF, "app.kubernetes.io/instance": name}
    kept = ("kubectl.kubernetes.io/", "argocd.argoproj.io/", "kustomize.toolkit.fluxcd.io/")
    annotations = {
        key: value
        for key, value in control["metadata"].get("annotations", {}).items()
        if not key.startswith(kept) and not key.startswith("thinktwice.dev/")
    }
    metadata |= {"labels": {k: v for k, v in labels.items() if not k.startswith(kept)}, "annotations": annotations}
    predictor = copy.deepcopy(control["spec"]["predictor"])
    predictor["labels"] = {
        **predictor.get("labels", {}),
        "app.kubernetes.io/instance": name,
        VARIANT_LABEL: arm,
        ARM_LABEL: arm,
        VERSION_LABEL: version.name,
    }
    predictor["model"]["storageUri"] = version.uri
    return {
        "apiVersion": SERVICES.api_version,
        "kind": SERVICES.kind,
        "metadata": metadata,
        "spec": {"predictor": predictor},
    }


def config_map(name: str, data: dict[str, str]) -> Json:
    """A ConfigMap with only the keys that a roll-out owns."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def probe_pod(name: str, image: str, pull_secrets: list[Json], script: str, env: dict[str, str], limit_s: int) -> Json:
    """A pod that sends requests to a predictor or the gateway from inside the cluster, under the ``restricted`` pod standard.

    Args:
        image: of the predictor: it has Python, and the nodes have pulled it.
        script: for ``python -c``; it reads its settings from ``env`` and writes its result to the termination message.
        limit_s: seconds until Kubernetes ends the pod.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {
                **PART_OF,
                "app.kubernetes.io/component": "probe",
                # The network policies let pods with these labels in.
                "ctr.example.org/calls-predictor": "true",
                "ctr.example.org/calls-gateway": "true",
                "ctr.example.org/probes-arms": "true",
            },
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": limit_s,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
            "containers": [
                {
                    "name": "probe",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/opt/venv/bin/python"],
                    "args": ["-I", "-S", "-c", script],
                    "env": [{"name": key, "value": value} for key, value in env.items()],
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "64Mi"},
                        "limits": {"cpu": "500m", "memory": "256Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }
