"""What KServe, Knative, the Deployment controller and the kubelet make of the objects of a namespace, on a clock.

InferenceServices in Standard mode go through ``tests.manifests.kserve_cluster``, which follows KServe's source. Pods become ready
``READY_S`` after they are made, or never, for the reason that ``broken`` has for their version. Requests are answered as a gateway would:
with the routes of ``lag`` seconds ago, by a pod that is ready, else with 503.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.cluster.objects_store import Json, Store
from tests.manifests import kserve_cluster
from tests.manifests.kserve_admission import MODE
from tests.manifests.kserve_controller import workload_name
from thinktwice.experiment.assignment import bucket_of
from thinktwice.experiment.route_check import TrafficSplit, read_split
from thinktwice.experiment.routes import CLUSTERS, ROUTES

VERSION = "ctr.example.org/model-version"
TAGS = "serving.kserve.io/enable-tag-routing"
IMAGE = "registry.example.org/thinktwice/predictor:0.1.0"

#: How pods fail: states of their containers, logs, and events about their owner.
INIT_FAILED = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}}
FAULTS: dict[str, Json] = {
    "image": {"state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x": not found'}}},
    "storage": {
        "init": INIT_FAILED,
        "log": "RuntimeError: Failed to fetch model. No model found in s3://models/ctr/\n",
    },
    "secret": {
        "init": INIT_FAILED,
        "log": "botocore.exceptions.ClientError: An error occurred (SignatureDoesNotMatch)\n",
    },
    "config": {
        "state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "ctr-keys" not found'}}
    },
    "crash": {
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "log": "the bundle is damaged: hashes disagree\n",
    },
    "full": {
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "log": "OSError: [Errno 28] No space left on device: '/var/log/thinktwice'\n",
    },
    "nodes": {"scheduled": "0/3 nodes are available: 3 Insufficient cpu."},
    "quota": {"event": 'pods "x" is forbidden: exceeded quota: team, requested: cpu=1, used: cpu=4, limited: cpu=4'},
    "psa": {"event": 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'},
}


@cache
def _split(routes: str, clusters: str) -> TrafficSplit:
    """Read once: the load asks for it with every request."""
    return read_split(routes.encode(), clusters.encode())


def seconds(back: int = 0) -> str:
    """The time ``back`` seconds ago, as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - back))


class Platform:
    """The controllers of one namespace.

    Attributes:
        broken: how the pods of a version fail, by version.
        silent: versions that are ready and answer without a score.
        gateway_api: whether KServe's ingress makes HTTPRoutes; weights: whether it gives shares to canaries (0.21 and later).
        lag: seconds until a gateway has a change of the routes.
        spread: seconds until the gateway has a change of its ConfigMap.
    """

    def __init__(self, store: Store, namespace: str) -> None:
        self.store, self.namespace = store, namespace
        self.broken: dict[str, str] = {}
        self.silent: list[str] = []
        self.gateway_api, self.weights = True, True
        self.lag, self.spread, self.ready_s = 0.3, 0.3, 0.3
        self._clusters: dict[str, kserve_cluster.Cluster] = {}
        self._routes: dict[str, list[tuple[float, dict[str, int]]]] = {}
        self._gateway: list[tuple[float, dict[str, str]]] = []
        self._revisions: dict[str, dict[str, Json]] = {}
        self._probes: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        self.port = 0
        self.restarts: list[str] = []  # pods that were ready and are deleted

    # What KServe does.

    def changed(self, plural: str, name: str) -> None:
        """Act on a change of an object, as its controller would."""
        if plural == "inferenceservices":
            service = self.store.get(plural, name)
            if service is None:
                self._clusters.pop(name, None)
                self._revisions.pop(name, None)
                for value in self.store.all("deployments"):
                    if value["metadata"]["labels"].get("owner") == name:
                        self._forget_pods(value["metadata"]["name"])
                for kind in ("deployments", "horizontalpodautoscalers", "httproutes", "services"):
                    for value in self.store.all(kind):
                        if value["metadata"].get("labels", {}).get("owner") == name:
                            self.store.delete(kind, value["metadata"]["name"])
            elif service["metadata"].get("annotations", {}).get(MODE) == "Knative":
                self._knative(name, service)
            else:
                self._standard(name, service)
        if plural == "configmaps" and name.endswith("-gateway"):
            value = self.store.get(plural, name)
            self._gateway.append((time.monotonic() + self.spread, dict((value or {}).get("data", {}))))
        if plural == "pods":
            self._start_probe(name)

    def _standard(self, name: str, service: Json) -> None:
        cluster = self._clusters.setdefault(name, kserve_cluster.Cluster(gateway=self.gateway_api))
        runtime = service["spec"]["predictor"]["model"].get("runtime", "")
        cluster.runtimes |= {r["metadata"]["name"]: r for r in self.store.all("servingruntimes")}
        if runtime not in cluster.runtimes:
            service["status"] = {
                "deploymentMode": "Standard",
                "modelStatus": {
                    "transitionStatus": "InvalidSpec",
                    "lastFailureInfo": {
                        "reason": "RuntimeNotRecognized",
                        "message": f"No ServingRuntimes or ClusterServingRuntimes with the name: {runtime}",
                    },
                },
            }
            return
        cluster.isvc = service
        cluster._reconcile(service)
        service["status"] = {"deploymentMode": "Standard"}
        for deployment, template in cluster.deployments.items():
            self._deployment(
                name, deployment, template, cluster.autoscalers[deployment][0], cluster.template_hash(deployment)
            )
        for value in self.store.all("deployments"):
            own = value["metadata"]["labels"].get("owner") == name
            if own and value["metadata"]["name"] not in cluster.deployments:
                self._forget_pods(value["metadata"]["name"])
                self.store.delete("deployments", value["metadata"]["name"])
        self._reconcile_routes(name, service)

    def _reconcile_routes(self, name: str, service: Json) -> None:
        """HTTPRoutes: a canary has a share only while it is ready. Autoscalers: its replicas are taken off the stable minimum."""
        cluster = self._clusters[name]
        stable = workload_name(service, service["spec"]["predictor"])
        least = service["spec"]["predictor"].get("minReplicas", 1)
        shares, taken = {}, 0
        for entry in service["spec"].get("canary", []):
            own = workload_name(service, entry["predictor"])
            ready = len(self.ready_pods(own)) >= entry["predictor"].get("minReplicas", 1)
            shares[own] = entry["trafficPercent"] if ready and self.weights else 0
            taken += entry["predictor"].get("minReplicas", 1) if ready else 0
        for scaler, (low, high) in cluster.autoscalers.items():
            if scaler == stable:
                low = max(least - taken, 1)
            if scaler in cluster.deployments:
                value = {
                    "metadata": {"name": scaler, "labels": {"owner": name}},
                    "spec": {"minReplicas": low, "maxReplicas": high},
                }
                if (self.store.get("horizontalpodautoscalers", scaler) or {}).get("spec") != value["spec"]:
                    self.store.put("horizontalpodautoscalers", value)
        if not self.gateway_api or service["metadata"].get("labels", {}).get("networking.kserve.io/visibility"):
            return
        weights = {stable: 100 - sum(shares.values()), **shares}
        refs = [{"name": backend, "port": 80, "weight": weight} for backend, weight in weights.items()]
        for route in (name, stable):
            value = {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": {"name": route, "labels": {"owner": name}},
                "spec": {"rules": [{"backendRefs": refs}]},
            }
            if (self.store.get("httproutes", route) or {}).get("spec") != value["spec"]:
                self.store.put("httproutes", value)
                self._routes.setdefault(route, []).append((time.monotonic() + self.lag, weights))

    # What the Deployment controller and the kubelet do.

    def _deployment(self, service: str, name: str, template: Json, replicas: int, digest: str) -> None:
        before = self.store.get("deployments", name)
        value: Json = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": {"owner": service}},
            "spec": {
                "replicas": replicas if before is None else max(replicas, before["spec"]["replicas"]),
                "template": {
                    "metadata": {"labels": {**template["labels"], "template": digest[:10]}},
                    "spec": {"containers": [{"name": "kserve-container", "image": IMAGE}]},
                },
            },
        }
        if before is None or before["spec"] != value["spec"]:
            if before is not None:
                value["status"] = before.get("status", {})
            self.store.put("deployments", value)

    def tick(self) -> None:
        """Let time pass: pods are made, become ready, and replace others one after the other."""
        now = time.monotonic()
        for deployment in self.store.all("deployments"):
            if "owner" in deployment["metadata"].get("labels", {}):
                self._roll(deployment, now)
            else:  # of an overlay: the gateway, which is Envoy itself in tests/gateway
                deployment["status"] = {"availableReplicas": deployment["spec"].get("replicas", 1)}
        for stateful in self.store.all("statefulsets"):
            stateful["status"] = {"readyReplicas": stateful["spec"].get("replicas", 1)}
        for name, service in ((s["metadata"]["name"], s) for s in self.store.all("inferenceservices")):
            if name in self._clusters and "transitionStatus" not in service.get("status", {}).get("modelStatus", {}):
                self._reconcile_routes(name, service)
            if name in self._revisions:
                self._knative_status(name, service, now)
        for probe, (process, result) in list(self._probes.items()):
            if process.poll() is not None:
                self._finish_probe(probe, process.returncode, result)

    def _roll(self, deployment: Json, now: float) -> None:
        name, labels = deployment["metadata"]["name"], deployment["spec"]["template"]["metadata"]["labels"]
        digest, wanted = labels["template"], deployment["spec"]["replicas"]
        pods = [pod for pod in self.store.all("pods") if pod["metadata"].get("owner") == name]
        new = [pod for pod in pods if pod["metadata"]["labels"]["template"] == digest]
        old = [pod for pod in pods if pod not in new]
        fault = self.broken.get(labels.get(VERSION, ""))
        if fault in ("quota", "psa"):
            self._event("ReplicaSet", f"{name}-{digest}", "FailedCreate", FAULTS[fault]["event"])
        else:
            surge = wanted if not old else 1  # one more pod at a time
            while len(new) < wanted and sum(not self._ready(pod, now) for pod in new) < surge:
                new.append(self._pod(name, digest, labels, len(new), now))
        for pod in new:
            self._pod_status(pod, fault, now)
        ready = [pod for pod in new if self._ready(pod, now)]
        for pod in old[: max(0, len(ready) + len(old) - wanted)] if ready else []:
            self.restarts.append(pod["metadata"]["name"])
            self.store.delete("pods", pod["metadata"]["name"])
        left = [pod for pod in self.store.all("pods") if pod["metadata"].get("owner") == name]
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(left),
            "updatedReplicas": len(new),
            "availableReplicas": sum(self._ready(pod, now) for pod in left),
        }

    def _pod(self, owner: str, digest: str, labels: Json, number: int, now: float) -> Json:
        suffix = f"{random.randrange(1 << 20):05x}"
        value = {
            "metadata": {"name": f"{owner}-{digest}-{suffix}", "labels": dict(labels), "owner": owner, "born": now, "creationTimestamp": seconds()},
            "spec": {"containers": [{"name": "kserve-container", "image": IMAGE}], "initContainers": [{"name": "storage-initializer", "image": "kserve/storage-initializer"}]},
            "status": {},
        }  # fmt: skip
        return self.store.put("pods", value)

    def _ready(self, pod: Json, now: float) -> bool:
        version = pod["metadata"]["labels"].get(VERSION, "")
        return version not in self.broken and now - pod["metadata"]["born"] >= self.ready_s

    def _pod_status(self, pod: Json, fault: str | None, now: float) -> None:
        found = FAULTS.get(fault or "", {})
        status: Json = {"phase": "Running" if self._ready(pod, now) else "Pending", "conditions": []}
        if "scheduled" in found:
            status["conditions"] = [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": found["scheduled"]}
            ]
        if "init" in found:
            status["initContainerStatuses"] = [
                {
                    "name": "storage-initializer",
                    "state": found["init"],
                    "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
                }
            ]
        if "state" in found:
            crashed = (
                {"terminated": {"exitCode": 1, "reason": "Error"}}
                if found["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                else {}
            )
            status["containerStatuses"] = [{"name": "kserve-container", "state": found["state"], "lastState": crashed}]
        pod["status"] = status

    def log(self, pod: str) -> str | None:
        value = self.store.get("pods", pod)
        fault = None if value is None else self.broken.get(value["metadata"].get("labels", {}).get(VERSION, ""))
        return None if value is None else FAULTS.get(fault or "", {}).get("log", "")

    def _event(self, kind: str, name: str, reason: str, message: str) -> None:
        value = {
            "metadata": {"name": f"{name}.{reason}".lower()},
            "involvedObject": {"kind": kind, "name": name},
            "type": "Warning", "reason": reason, "message": message, "lastTimestamp": seconds(),
        }  # fmt: skip
        self.store.objects.setdefault(("events", value["metadata"]["name"]), None)  # type: ignore[arg-type]
        self.store.delete("events", value["metadata"]["name"])
        self.store.put("events", value)

    def _forget_pods(self, owner: str) -> None:
        for pod in self.store.all("pods"):
            if pod["metadata"].get("owner") == owner:
                self.restarts.append(pod["metadata"]["name"])
                self.store.delete("pods", pod["metadata"]["name"])

    def ready_pods(self, owner: str) -> list[Json]:
        now = time.monotonic()
        return [p for p in self.store.all("pods") if p["metadata"].get("owner") == owner and self._ready(p, now)]

    # What Knative does.

    def _knative(self, name: str, service: Json) -> None:
        revisions = self._revisions.setdefault(name, {})
        predictor = service["spec"]["predictor"]
        template = json.dumps(
            [{k: v for k, v in predictor.items() if k not in ("canaryTrafficPercent", "minReplicas", "maxReplicas")}, service["metadata"].get("annotations", {}).get(TAGS)],
            sort_keys=True,
        )  # fmt: skip
        latest = revisions[max(revisions)] if revisions else None
        if latest is None or latest["template"] != template:
            own = f"{name}-predictor-{len(revisions) + 1:05d}"
            label = predictor["labels"][VERSION]
            value = {
                "metadata": {
                    "name": own,
                    "labels": {VERSION: label, "owner": name, "serving.kserve.io/inferenceservice": name},
                    "annotations": {"internal.serving.kserve.io/storage-initializer-sourceuri": predictor["model"]["storageUri"]},
                },
                "spec": {"containers": [{"name": "kserve-container", "image": IMAGE}]},
            }  # fmt: skip
            revisions[own] = {"template": template, "version": label, "born": time.monotonic()}
            self.store.put("revisions", value)
            labels = {VERSION: label, "serving.kserve.io/inferenceservice": name, "template": own}
            self._deployment(name, f"{own}-deployment", {"labels": labels}, 2, own[::-1])
        self._knative_status(name, service, time.monotonic())

    def _knative_status(self, name: str, service: Json, now: float) -> None:
        revisions = self._revisions[name]
        before = service.get("status", {}).get("components", {}).get("predictor", {})
        ready = [own for own in sorted(revisions) if self.ready_pods(f"{own}-deployment")]
        latest, created = (ready[-1] if ready else ""), max(revisions)
        percent, rolled = (
            service["spec"]["predictor"].get("canaryTrafficPercent"),
            before.get("latestRolledoutRevision", ""),
        )
        traffic = [{"revisionName": latest, "percent": 100, "latestRevision": True}]
        if percent is not None and rolled and rolled != created:
            traffic = [
                {"revisionName": latest, "percent": percent if latest == created else 0, "tag": "latest"},
                {"revisionName": rolled, "percent": 100 - percent if latest == created else 100, "tag": "prev"},
            ]
        elif percent is None and latest == created:
            rolled = latest
        status = {
            "latestCreatedRevision": created,
            "latestReadyRevision": latest,
            "latestRolledoutRevision": rolled,
            "traffic": traffic,
        }
        service["status"] = {"deploymentMode": "Knative", "components": {"predictor": status}}

    # Requests.

    def answer(self, url: str, headers: Any) -> tuple[int, Json, dict[str, str]]:
        """The data plane: status, body and headers of the answer to a request to an address inside the cluster."""
        host = urlsplit(url).hostname or ""
        name = host.split(".")[0]
        arm = ""
        if name == "ctr-feedback" and self.store.get("statefulsets", name) is not None:
            return 202, {"accepted": 1}, {}
        if name in ("ctr-gateway",) and self.store.get("configmaps", name) is not None:
            arm = self._arm(headers.get("x-experiment-unit") or "")
            name = f"ctr-{arm}-predictor"
        elif host.endswith(".example.com"):  # the gateway of the cluster, by the host name of the HTTPRoute
            name = self._backend(name)
        deployment = self._knative_backend(name) or name
        pods = self.ready_pods(deployment)
        if not pods:
            return 503, {"error": f"no healthy upstream for {name}"}, {}
        version = random.choice(pods)["metadata"]["labels"][VERSION]
        score = float("nan") if version in self.silent else 0.25
        entry = {} if version in self.silent else {"probability": score}
        return 200, {"predictions": [{"rows": [{"row": 0, **entry}], "model_version": version}]}, {"x-served-arm": arm}

    def _backend(self, route: str) -> str:
        now = time.monotonic()
        live = [weights for since, weights in self._routes.get(route, []) if since <= now]
        weights = live[-1] if live else {}
        return random.choices(list(weights), list(weights.values()))[0] if sum(weights.values()) else "none"

    def _knative_backend(self, name: str) -> str:
        for service in self.store.all("inferenceservices"):
            own = f"{service['metadata']['name']}-predictor"
            status = service.get("status", {}).get("components", {}).get("predictor", {})
            if name in (own, f"latest-{own}") and status:
                if name != own:
                    tagged = service["metadata"].get("annotations", {}).get(TAGS) == "true"
                    return f"{status['latestReadyRevision']}-deployment" if tagged else "none"
                shares = {t["revisionName"]: t["percent"] for t in status["traffic"]}
                return f"{random.choices(list(shares), list(shares.values()))[0]}-deployment"
        return ""

    def _arm(self, unit: str) -> str:
        now = time.monotonic()
        live = [data for since, data in self._gateway if since <= now]
        data = live[-1] if live else {}
        split = _split(data[ROUTES], data[CLUSTERS])
        bucket = bucket_of(split.salt, unit) if unit else 0
        for part in split.ranges:
            if unit and part.start <= bucket < part.stop:
                return part.arm
        return "control"

    # Probes: the pod's own command runs, its requests come back to this process as to a proxy.

    def _start_probe(self, name: str) -> None:
        pod = self.store.get("pods", name)
        if (
            pod is None
            or pod["metadata"].get("labels", {}).get("app.kubernetes.io/component") != "probe"
            or name in self._probes
        ):
            return
        (container,) = pod["spec"]["containers"]
        assert container["command"] == ["/opt/venv/bin/python"] and container["image"] == IMAGE, container
        result = Path(tempfile.mkdtemp(prefix="probe-")) / "termination-log"
        env = {entry["name"]: entry["value"] for entry in container["env"]}
        env |= {"PROBE_RESULT": str(result), "http_proxy": f"http://127.0.0.1:{self.port}", "PATH": os.environ["PATH"]}
        process = subprocess.Popen([sys.executable, *container["args"]], env=env)
        self._probes[name] = (process, result)
        pod["status"] = {"phase": "Running"}

    def _finish_probe(self, name: str, code: int, result: Path) -> None:
        del self._probes[name]
        pod = self.store.get("pods", name)
        if pod is None:
            return
        written = result.read_bytes() if result.exists() else b""
        message = written[-4096:].decode()  # as the kubelet reads it
        terminated = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": message}
        pod["status"] = {
            "phase": "Succeeded" if code == 0 else "Failed",
            "containerStatuses": [{"name": "probe", "state": {"terminated": terminated}}],
        }

    def close(self) -> None:
        for process, _ in self._probes.values():
            process.kill()
