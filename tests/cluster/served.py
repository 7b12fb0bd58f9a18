"""Starts the API server, fills its namespace with an overlay of ``manifests/``, and sends load to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.deployment.rollout.connect import open_session
from components.deployment.rollout.objects import VERSION_LABEL, Version, version_at
from components.deployment.rollout.target import Session
from components.deployment.rollout.waiting import Waiting
from tests.cluster.api_process import Api, running
from tests.cluster.api_server import NAMESPACE
from tests.cluster.objects_store import Json

FAST = Waiting(limit_s=90.0, settle_s=0.6, poll_s=0.1, drain_s=0.6, spread_s=0.6)
SHORT = Waiting(limit_s=4.0, settle_s=60.0, poll_s=0.1, drain_s=0.6, spread_s=0.6)  # for what never becomes ready
PLURALS = {
    "InferenceService": "inferenceservices", "ServingRuntime": "servingruntimes", "ConfigMap": "configmaps", "Deployment": "deployments",
    "Service": "services", "NetworkPolicy": "networkpolicies", "PodDisruptionBudget": "poddisruptionbudgets",
    "ServiceAccount": "serviceaccounts", "PersistentVolumeClaim": "persistentvolumeclaims", "Lease": "leases", "StatefulSet": "statefulsets",
}  # fmt: skip
V1, V2, V3 = (
    version_at(f"s3://models/ctr/{name}/")
    for name in ("ml-1m-aaaaaaaaaaaa", "ml-1m-bbbbbbbbbbbb", "ml-1m-cccccccccccc")
)


@contextmanager
def api_server(folder: Path, schemas: Path | None) -> Iterator[Api]:
    """The server as a process, and a kubeconfig for it in ``folder``."""
    argument = "" if schemas is None else str(schemas)
    with running("tests.cluster.api_server", argument, NAMESPACE, folder) as api:
        yield api


def session(api: Api, *, waiting: Waiting = FAST, said: list[str] | None = None, **change: Any) -> Session:
    """A session with the server."""
    found = open_session(
        "ctr", "", waiting, patience_s=change.pop("patience_s", 2.0), tell=(said if said is not None else []).append
    )
    for name, value in change.items():
        setattr(found, name, value)
    return found


def install(api: Api, resources: list[Json], version: Version = V1) -> None:
    """Put an overlay's objects into the namespace, as a person's kubectl would, and wait until its pods are ready."""
    objects = []
    for value in resources:
        value = json.loads(json.dumps(value))
        if value["kind"] not in PLURALS or (
            value["metadata"]["name"] == "ctr-gateway" and value["kind"] == "Deployment"
        ):
            continue
        value["metadata"].pop("namespace", None)
        if value["kind"] == "InferenceService":
            value["spec"]["predictor"]["labels"][VERSION_LABEL] = version.name
            value["spec"]["predictor"]["model"]["storageUri"] = version.uri
        objects.append([PLURALS[value["kind"]], value])
    order = {"servingruntimes": 0, "configmaps": 1}
    api.control(objects=sorted(objects, key=lambda pair: order.get(pair[0], 2)))
    until(lambda: _all_ready(api))


def _all_ready(api: Api) -> bool:
    deployments = api.objects("deployments").values()
    ready = [d.get("status", {}).get("availableReplicas", 0) >= d["spec"]["replicas"] for d in deployments]
    rolled = all(
        s.get("status", {}).get("components", {}).get("predictor", {}).get("latestRolledoutRevision", "x")
        for s in api.objects("inferenceservices").values()
    )
    return bool(ready) and all(ready) and rolled


def until(done: Any, limit_s: float = 90.0) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.05)


class Load:
    """What became of requests."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()

    @property
    def failed(self) -> int:
        return sum(number for status, number in self.statuses.items() if status != 200)


@contextmanager
def load(api: Api, url: str, rate: float = 50.0) -> Iterator[Load]:
    """``rate`` requests a second to an address inside the cluster while the block runs."""
    found, stop = Load(), threading.Event()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": api.address}))

    def run() -> None:
        start, number = time.monotonic(), 0
        while not stop.is_set():
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
            request = urllib.request.Request(url, b"{}", {"X-Experiment-Unit": f"user-{number % 500}"})
            try:
                with opener.open(request, timeout=30) as answer:
                    found.statuses[answer.status] += 1
                    found.versions[json.load(answer)["predictions"][0]["model_version"]] += 1
            except urllib.error.HTTPError as error:
                found.statuses[error.code] += 1
            except (OSError, http.client.HTTPException):
                found.statuses[0] += 1
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
