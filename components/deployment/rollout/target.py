"""What the three forms of a roll-out have in common: the session, and what is alive in the cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from components.cluster.client import Api, Json
from components.deployment.rollout.lock import State
from components.deployment.rollout.objects import DEPLOYMENTS, SERVICES, VERSION_LABEL, Version, host
from components.deployment.rollout.probe import EMPTY_ROW, PATH, Probed, check_smoke, finish_probe, start_probe
from components.deployment.rollout.waiting import (
    Fault,
    Waiting,
    deployment_missing,
    predictor_faults,
    service_fault,
    wait_for,
)
from thinktwice.errors import RolloutError


@dataclass
class Session:
    """One command or step at work.

    Attributes:
        service: name of the InferenceService; with arms, the start of their names.
        body: request of the smoke test.
        take_over: take fields from other managers.
        tell: what is done, line by line.
        renew: keeps the lock.
    """

    api: Api
    service: str = "ctr"
    waiting: Waiting = field(default_factory=Waiting)
    body: str = EMPTY_ROW
    take_over: bool = False
    tell: Callable[[str], None] = field(default=lambda text: None)
    renew: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Live:
    """What the cluster serves.

    Attributes:
        percent: share of the canary.
        min_replicas: of the stable predictor; None if it is not set.
    """

    stable: Version
    canary: Version | None = None
    percent: int = 0
    min_replicas: int | None = None


class Target(Protocol):
    """One of the forms. Every call may be repeated: it completes what an earlier one began."""

    def live(self) -> Live:
        """What is served. Raises RolloutError where this form has no effect."""

    def canary(self, state: State) -> None:
        """Serve ``state.canary`` beside the stable version, test it, and give it ``state.percent`` of the requests."""

    def promote(self, state: State) -> None:
        """Make ``state.canary`` the stable version, and leave nothing of the canary."""

    def roll_back(self, state: State) -> None:
        """Make ``state.stable`` serve everything, and leave nothing of the canary."""


def get_service(session: Session, name: str) -> Json:
    """An InferenceService.

    Raises:
        RolloutError: there is none.
    """
    found = session.api.get(SERVICES, name)
    if found is None:
        raise RolloutError(
            f"namespace {session.api.namespace} has no InferenceService {name}: apply an overlay of manifests/ first, or give --service"
        )
    return found


def version_of(predictor: Json, service: str) -> Version:
    """Version of a predictor, from its ``storageUri`` and its label.

    Raises:
        RolloutError: it has none.
    """
    uri = predictor.get("model", {}).get("storageUri", "")
    name = predictor.get("labels", {}).get(VERSION_LABEL) or uri.rstrip("/").rpartition("/")[2]
    try:
        return Version(name=name, uri=uri)
    except ValueError:
        raise RolloutError(
            f"InferenceService {service} has no model version (storageUri {uri!r}, label {VERSION_LABEL} {name!r}): apply an overlay of "
            "manifests/, which sets both"
        ) from None


def wait_for_deployment(session: Session, service: str, name: str, version: str) -> Json:
    """Wait until all pods of a Deployment serve a version. Returns the Deployment."""
    api = session.api

    def faults() -> list[Fault]:
        found = api.get(SERVICES, service)
        return predictor_faults(api, service, version, name) + (service_fault(found) if found else [])

    wait_for(
        api,
        f"version {version} (deployment {name})",
        lambda: deployment_missing(api.get(DEPLOYMENTS, name), version),
        faults,
        session.waiting,
        session.renew,
    )
    found = api.get(DEPLOYMENTS, name)
    if found is None:
        raise RolloutError(f"deployment {name} was deleted while it was waited for: run the command again")
    return found


def smoke(session: Session, template: Json, address: str, version: str) -> None:
    """Test requests to a version: at least one score, from that version.

    Args:
        template: pod template with the image for the probe.
        address: name of a Service.
    """
    url = f"http://{host(session.api.namespace, address)}{PATH}"
    probed = probe(session, template, url, tries=5)
    check_smoke(probed, version, url)


def probe(session: Session, template: Json, url: str, *, unit: str = "", count: int = 1, tries: int = 1) -> Probed:
    """Send requests from inside the cluster and return what became of them."""
    name = start_probe(
        session.api, url, template, service=session.service, body=session.body, unit=unit, count=count, tries=tries
    )
    return finish_probe(session.api, name, limit_s=120, poll_s=min(1.0, session.waiting.poll_s), renew=session.renew)
