"""What Knative's webhook refuses in the Service that KServe makes in Knative mode, with Knative's default feature flags.

Read in Knative Serving, August 2026: pkg/apis/serving/fieldmask.go (fields), k8s_validation.go (values). Its schema is wider: fields
behind a flag are in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

POD = {
    "containers",
    "volumes",
    "serviceAccountName",
    "imagePullSecrets",
    "enableServiceLinks",
    "automountServiceAccountToken",
}
CONTAINER = {
    *("name", "args", "command", "env", "envFrom", "workingDir", "image", "imagePullPolicy", "ports", "resources"),
    *("livenessProbe", "readinessProbe", "startupProbe", "securityContext", "volumeMounts"),
    *("terminationMessagePath", "terminationMessagePolicy"),
}
SECURITY = {
    "runAsUser",
    "runAsGroup",
    "runAsNonRoot",
    "readOnlyRootFilesystem",
    "allowPrivilegeEscalation",
    "capabilities",
    "seccompProfile",
}
VOLUMES = {"secret", "configMap", "projected", "emptyDir"}
RESERVED_PORTS = {8008, 8012, 8013, 8022, 9090, 9091}
RESERVED_ENVIRONMENT = {"PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"}
RESERVED_PATHS = {"/", "/dev", "/dev/log"}
PORT_NAMES = {"", "http1", "h2c"}
MAX_SECONDS, MAX_CONCURRENCY = (
    600,
    1000,
)  # config-defaults: max-revision-timeout-seconds, container-concurrency-max-limit


def refused(template: Object) -> list[str]:
    """Why Knative would refuse a revision template (``spec.template.spec`` of a Service)."""
    return list(_refused(template))


def _refused(template: Object) -> Iterator[str]:
    fields = set(template) - {"timeoutSeconds", "containerConcurrency"}
    yield from (f"pod field {name} needs a feature flag or is not allowed" for name in sorted(fields - POD))
    if template.get("automountServiceAccountToken"):
        yield "automountServiceAccountToken may only be false"
    if not 0 < template.get("timeoutSeconds", 300) <= MAX_SECONDS:
        yield f"timeoutSeconds {template['timeoutSeconds']} is not in 1..{MAX_SECONDS}"
    if not 0 <= template.get("containerConcurrency", 0) <= MAX_CONCURRENCY:
        yield f"containerConcurrency {template['containerConcurrency']} is not in 0..{MAX_CONCURRENCY}"
    mounted = {
        mount["name"]: mount for container in template["containers"] for mount in container.get("volumeMounts", [])
    }
    for volume in template.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']} of kind {sorted(kinds)} needs a feature flag"
        if volume["name"] not in mounted:
            yield f"volume {volume['name']} is not mounted"
        elif "emptyDir" not in kinds and not mounted[volume["name"]].get("readOnly"):
            yield f"volume {volume['name']} must be mounted readOnly"
    if sum(len(container.get("ports", [])) for container in template["containers"]) > 1:
        yield "more than one container port is set"
    for container in template["containers"]:
        yield from _container(container)


def _container(container: Object) -> Iterator[str]:
    yield from (f"container field {name} is not allowed" for name in sorted(set(container) - CONTAINER))
    yield from (
        f"securityContext.{name} is not allowed"
        for name in sorted(set(container.get("securityContext", {})) - SECURITY)
    )
    for port in container.get("ports", []):
        if port["containerPort"] in RESERVED_PORTS:
            yield f"port {port['containerPort']} is reserved"
        if port.get("name", "") not in PORT_NAMES or port.get("protocol", "TCP") != "TCP":
            yield f"port name {port.get('name')!r} and protocol must be one of {sorted(PORT_NAMES)}, TCP"
    for entry in container.get("env", []):
        if entry["name"] in RESERVED_ENVIRONMENT:
            yield f"environment variable {entry['name']} is reserved"
        if set(entry.get("valueFrom", {})) - {"secretKeyRef", "configMapKeyRef"}:
            yield f"environment variable {entry['name']}: valueFrom takes Secrets and ConfigMaps only"
    for mount in container.get("volumeMounts", []):
        if mount["mountPath"].rstrip("/") in RESERVED_PATHS | {""}:
            yield f"mount path {mount['mountPath']} is reserved"
