"""Waiting for pods, with the reasons for which they do not become ready as sentences with the next command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from components.cluster.client import Api, Json
from components.deployment.rollout.objects import EVENTS, PODS, SERVICE_LABEL, VERSION_LABEL
from thinktwice.errors import RolloutError

IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
INITIALIZER = "storage-initializer"
SECONDS = len("2024-01-31T12:00:00")  # of a time of the API, which may have a fraction


@dataclass(frozen=True)
class Fault:
    """Why a pod does not become ready.

    Attributes:
        lasting: it does not go away by waiting alone.
    """

    text: str
    lasting: bool = True


@dataclass(frozen=True)
class Waiting:
    """How long to wait.

    Attributes:
        limit_s: seconds until something that is not ready has failed.
        settle_s: seconds after which a lasting fault has failed it: a registry or a store may be away for a moment.
        poll_s: seconds between two looks.
        drain_s: seconds from a change of the routes until no gateway sends requests to what they no longer name.
        spread_s: seconds until the pods of the gateway have new routes from their ConfigMap (the kubelet's period, and its cache).
    """

    limit_s: float = 600.0
    settle_s: float = 60.0
    poll_s: float = 2.0
    drain_s: float = 15.0
    spread_s: float = 90.0


def wait_for(
    api: Api,
    what: str,
    look: Callable[[], str],
    faults: Callable[[], Sequence[Fault]],
    waiting: Waiting,
    renew: Callable[[], None] = lambda: None,
) -> None:
    """Wait until ``look`` returns "".

    Args:
        what: for messages, e.g. ``deployment ctr-predictor``.
        look: what is not ready yet, "" for nothing.
        faults: reasons, asked for while it is not ready.

    Raises:
        RolloutError: a lasting fault stays, or the time is over.
    """
    end, since = time.monotonic() + waiting.limit_s, 0.0
    known: str = ""
    while missing := look():
        renew()
        found = list(faults())
        lasting = next((fault.text for fault in found if fault.lasting), "")
        now = time.monotonic()
        if lasting != known:
            known, since = lasting, now
        if known and now - since >= waiting.settle_s:
            raise RolloutError(f"{what} does not become ready: {known}")
        if now >= end:
            why = "; ".join(dict.fromkeys(fault.text for fault in found)) or missing
            raise RolloutError(f"{what} is not ready after {waiting.limit_s:.0f} s: {why}")
        api.sleep(waiting.poll_s)


def predictor_faults(api: Api, service: str, version: str, owner: str) -> list[Fault]:
    """Why the pods of a version do not become ready.

    Args:
        owner: start of the names of the Deployment or revision and of its ReplicaSet and pods.
    """
    pods = api.list(PODS, labelSelector=f"{SERVICE_LABEL}={service},{VERSION_LABEL}={version}")
    found = pod_faults(api, [pod for pod in pods if pod["metadata"]["name"].startswith(owner)])
    return found + event_faults(api, owner, pods)


def pod_faults(api: Api, pods: Sequence[Json]) -> list[Fault]:
    """Faults of pods, from the states of their containers and their conditions."""
    return [fault for pod in pods for fault in _pod(api, pod)]


def _pod(api: Api, pod: Json) -> Iterator[Fault]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    describe = f"`kubectl describe pod {name} -n {api.namespace}`"
    if "deletionTimestamp" in pod["metadata"]:
        return  # it ends
    # Evicted, or refused by its node: another pod takes its place, and this one stays for days.
    if status.get("phase") == "Failed":
        why = f"{status.get('reason')}: {status.get('message')}"
        yield Fault(f"pod {name} has ended ({why}): see {describe}", lasting=False)
        return
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield Fault(
                f"pod {name} has no node ({condition.get('message')}): add nodes or lower its requests, see {describe}",
                lasting=False,
            )
    images = {
        c["name"]: c["image"] for c in [*pod["spec"].get("initContainers", []), *pod["spec"].get("containers", [])]
    }
    for state in status.get("initContainerStatuses", []):
        yield from _container(api, name, state, images, True)
    for state in status.get("containerStatuses", []):
        yield from _container(api, name, state, images, False)


def _container(api: Api, pod: str, status: Json, images: dict[str, str], init: bool) -> Iterator[Fault]:
    container, state = status["name"], status.get("state", {})
    waiting, ended = (
        state.get("waiting", {}),
        state.get("terminated") or status.get("lastState", {}).get("terminated", {}),
    )
    why, message = waiting.get("reason", ""), " ".join(waiting.get("message", "").split())[:300]
    describe = f"`kubectl describe pod {pod} -n {api.namespace}`"
    if why in IMAGE:
        yield Fault(
            f"the image {images.get(container, '')} of pod {pod} cannot be pulled ({why}: {message}): push it, or name a pull secret "
            f"at the service account; see {describe}"
        )
    elif why in CONFIG:
        yield Fault(
            f"container {container} of pod {pod} cannot be made ({why}: {message}): create what it names; see {describe}"
        )
    elif (why == "CrashLoopBackOff" or state.get("terminated")) and ended and ended.get("exitCode", 0) != 0:
        command = f"`kubectl logs {pod} -c {container} -n {api.namespace} --previous`"
        last = _last_line(api, pod, container) or message or ended.get("reason", "")
        if container == INITIALIZER:
            yield Fault(
                f"pod {pod} cannot fetch its model ({last}): check the storageUri with `thinktwice bundle list`, and the Secret of the "
                f"service account; see {command.replace(' --previous', '')}"
            )
        else:
            yield Fault(
                f"container {container} of pod {pod} ends with exit code {ended.get('exitCode')} ({last}): see {command}",
                lasting=not init,
            )


def _last_line(api: Api, pod: str, container: str) -> str:
    """Last line of a container's log that is no trace; "" if there is none."""
    answer = api.ask("GET", PODS, pod, part="log", query={"container": container, "tailLines": "20"}, allow=(400, 404))
    lines = [line.strip() for line in str(answer.body).splitlines() if line.strip()] if answer.ok else []
    return lines[-1][:300] if lines else ""


#: Parts of event messages by which creation fails for good, and what to do.
_CREATION = (
    ("exceeded quota", "raise the quota of the namespace, or free some"),
    (
        "violates PodSecurity",
        "see manifests/README.md, Security: KServe's storage initializer needs a security context",
    ),
    ("denied the request", "correct what the webhook names"),
    ("forbidden", "correct what it names"),
)


def event_faults(api: Api, owner: str, pods: Sequence[Json]) -> list[Fault]:
    """Faults that only events show: pods that could not be created, and volumes that cannot be mounted.

    Kubernetes keeps an event for an hour. One that is older than the newest pod of the version is past: pods can be created again.
    """
    found, names = [], {pod["metadata"]["name"] for pod in pods}
    newest = max((str(pod["metadata"].get("creationTimestamp") or "") for pod in pods), default="")[:SECONDS]
    for event in api.list(EVENTS, fieldSelector="type=Warning"):
        about = event.get("involvedObject", {})
        name, why = about.get("name") or "", event.get("reason", "")
        text = " ".join(event.get("message", "").split())[:400]
        if name in names and why in ("FailedMount", "FailedAttachVolume"):
            found.append(
                Fault(
                    f"pod {name} cannot mount a volume ({text}): check the claim or Secret that it names", lasting=False
                )
            )
        if not name.startswith(owner) or about.get("kind") == "Pod" or _last_seen(event) < newest:
            continue
        for part, advice in _CREATION:
            if part in text:
                found.append(Fault(f"{about.get('kind')} {name} cannot create its pods ({text}): {advice}"))
                break
    return found


def _last_seen(event: Json) -> str:
    """When an event happened last, in whole seconds; an event without a time counts as present."""
    times = (event.get("lastTimestamp"), (event.get("series") or {}).get("lastObservedTime"), event.get("eventTime"))
    return max((str(time)[:SECONDS] for time in times if time), default="9")


def service_fault(service: Json) -> list[Fault]:
    """What KServe itself says about an InferenceService that it cannot start."""
    status = service.get("status", {})
    failure = status.get("modelStatus", {}).get("lastFailureInfo", {})
    if status.get("modelStatus", {}).get("transitionStatus") == "InvalidSpec" and failure:
        return [
            Fault(
                f"KServe cannot start InferenceService {service['metadata']['name']} ({failure.get('reason')}: "
                f"{' '.join(failure.get('message', '').split())[:300]}): correct what it names"
            )
        ]
    return []


def deployment_missing(deployment: Json | None, version: str, least: int = 1) -> str:
    """What a Deployment lacks to serve a version with all its pods; "" for nothing."""
    if deployment is None:
        return "its Deployment does not exist yet"
    metadata, spec, status = deployment["metadata"], deployment["spec"], deployment.get("status", {})
    if spec["template"]["metadata"].get("labels", {}).get(VERSION_LABEL) != version:
        return f"its Deployment does not have version {version} yet"
    wanted = max(spec.get("replicas", 1), least)
    if status.get("observedGeneration", 0) < metadata.get("generation", 0):
        return "its Deployment is not reconciled yet"
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    total = status.get("replicas", 0)
    if updated < wanted or available < wanted:
        return f"{min(updated, available)} of {wanted} pods are ready"
    return "" if total <= updated else f"{total - updated} pods of the version before still run"
