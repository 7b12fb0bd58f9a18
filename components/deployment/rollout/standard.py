"""The canary of KServe's Standard mode (``spec.canary``): a share of the requests at the gateway, drawn by request.

The stable predictor keeps its name, so its Service and the route stay, and nothing that reaches its pods changes: they are not
replaced when a canary begins or ends. KServe takes the canary's replica off the stable minimum, so the minimum is one higher while
a canary stands. The share is 0 before the canary's pods are made and before they are removed: no route names a backend that is not there.
"""

from __future__ import annotations

import time

from components.cluster.client import Json
from components.deployment.rollout.apply import apply
from components.deployment.rollout.lock import State
from components.deployment.rollout.objects import (
    DEPLOYMENTS,
    MODE,
    ROUTES,
    SCALERS,
    SERVICES,
    VISIBILITY,
    Version,
    canary_name,
    service_patch,
    stable_predictor,
    standard_canary,
    workload,
)
from components.deployment.rollout.target import Live, Session, get_service, smoke, version_of, wait_for_deployment
from components.deployment.rollout.waiting import wait_for
from thinktwice.errors import RolloutError


class Standard:
    """The form ``standard``."""

    def __init__(self, session: Session) -> None:
        self._session, self._api, self._service = session, session.api, session.service

    def live(self) -> Live:
        found = get_service(self._session, self._service)
        name, metadata, spec = self._service, found["metadata"], found["spec"]
        mode = found.get("status", {}).get("deploymentMode") or metadata.get("annotations", {}).get(MODE)
        if mode not in ("Standard", "RawDeployment"):
            raise RolloutError(
                f"InferenceService {name} runs in the mode {mode or 'that is the default of the cluster'}, which ignores spec.canary: "
                "use --form knative, or gateway"
            )
        if metadata.get("labels", {}).get(VISIBILITY) == "cluster-local":
            raise RolloutError(
                f"InferenceService {name} is cluster-local, so it has no route and a canary gets no requests: use --form gateway"
            )
        if "transformer" in spec:
            raise RolloutError(
                f"InferenceService {name} has a transformer, which a canary bypasses: use --form gateway"
            )
        canaries = spec.get("canary", [])
        if len(canaries) > 1:
            raise RolloutError(
                f"InferenceService {name} has {len(canaries)} canaries: remove all but one from spec.canary"
            )
        canary = version_of(canaries[0]["predictor"], name) if canaries else None
        return Live(
            stable=version_of(spec["predictor"], name),
            canary=canary,
            percent=canaries[0]["trafficPercent"] if canaries else 0,
            min_replicas=spec["predictor"].get("minReplicas"),
        )

    def canary(self, state: State) -> None:
        assert state.canary is not None
        session, version = self._session, state.canary
        if self._api.get(ROUTES, self._service) is None:
            raise RolloutError(
                f"InferenceService {self._service} has no HTTPRoute, so a share in spec.canary has no effect: set enableGatewayApi: true in "
                "KServe's ConfigMap inferenceservice-config, or use --form gateway"
            )
        live = self.live()
        if live.canary is None:
            self._apply(state.stable, state, 0)
            session.tell(f"canary {version.name}: made, without requests")
        name = workload(self._service, canary_name(self._service, version.name))
        deployment = wait_for_deployment(session, self._service, name, version.name)
        smoke(session, deployment["spec"]["template"], name, version.name)
        session.tell(f"canary {version.name}: ready, and it scores")
        self._apply(state.stable, state, state.percent)
        self._wait_for_share(name, state.percent)
        session.tell(f"canary {version.name}: {state.percent} % of the requests at the gateway")

    def promote(self, state: State) -> None:
        assert state.canary is not None
        session, version = self._session, state.canary
        live = self.live()
        # Ended by an earlier call: the canary is gone, and so is nothing else.
        percent = live.percent if live.canary is not None else None
        self._apply(version, state, percent)
        name = workload(self._service)
        deployment = wait_for_deployment(session, self._service, name, version.name)
        smoke(session, deployment["spec"]["template"], name, version.name)
        session.tell(f"{version.name}: all pods of {name} serve it")
        self._remove_canary(version, version, state)

    def roll_back(self, state: State) -> None:
        session, live = self._session, self.live()
        canary = live.canary or state.canary
        if live.canary is not None and live.percent:
            self._apply(live.stable, state, 0)
            self._drain(workload(self._service, canary_name(self._service, live.canary.name)))
        if live.stable != state.stable:
            self._apply(state.stable, state, 0 if live.canary is not None else None)
        wait_for_deployment(session, self._service, workload(self._service), state.stable.name)
        self._remove_canary(canary, state.stable, state)
        session.tell(f"{state.stable.name}: serves all requests")

    def _remove_canary(self, canary: Version | None, stable: Version, state: State) -> None:
        """Remove the canary after its share, then what KServe leaves of it."""
        name = workload(self._service, canary_name(self._service, canary.name)) if canary is not None else ""
        live = self.live()
        if live.canary is not None:
            if live.percent:
                self._apply(stable, state, 0)
            self._drain(name)
        after = self._apply(stable, state, None)
        if after["spec"].get("canary"):
            raise RolloutError(
                f"InferenceService {self._service}: spec.canary belongs to another manager and is still there, without requests: remove it "
                "where it was applied from, and run the command again"
            )
        if not name:
            return
        wait_for(
            self._api,
            f"the end of deployment {name}",
            lambda: "it still exists" if self._api.get(DEPLOYMENTS, name) is not None else "",
            list,
            self._session.waiting,
            self._session.renew,
        )
        self._api.delete(SCALERS, name)

    def _apply(self, stable: Version, state: State, percent: int | None) -> Json:
        """Say what serves.

        Args:
            percent: share of the canary of ``state``; None for no canary.
        """
        self._session.renew()
        least, canaries = state.min_replicas, None
        if percent is not None:
            found = get_service(self._session, self._service)["spec"]
            version = state.canary
            if version is None or found.get("canary"):
                entries = found.get("canary", [])
                version = version_of(entries[0]["predictor"], self._service) if entries else version
            assert version is not None
            canaries = standard_canary(self._service, found["predictor"], version, percent)
            least = (least or 1) + 1
        patch = service_patch(self._service, stable_predictor(stable, least), canary=canaries)
        after = apply(self._api, SERVICES, patch, take_over=self._session.take_over)
        if percent is not None and not after["spec"].get("canary"):
            raise RolloutError(
                "KServe in this cluster does not know spec.canary, so it dropped it: install 0.21 or later, or use --form gateway"
            )
        return after

    def _shares(self, name: str) -> list[int]:
        """Shares of a Service in the rules of KServe's routes."""
        found = []
        for route in (self._service, workload(self._service)):
            value = self._api.get(ROUTES, route)
            for rule in (value or {}).get("spec", {}).get("rules", []):
                found += [ref.get("weight", 1) for ref in rule.get("backendRefs", []) if ref.get("name") == name]
        return found

    def _wait_for_share(self, name: str, percent: int) -> None:
        def missing() -> str:
            shares = self._shares(name)
            if percent == 0:
                return "" if not any(shares) else f"HTTPRoute {self._service} still gives it {max(shares)} %"
            return "" if percent in shares else f"HTTPRoute {self._service} gives it no share of {percent} %"

        limit = min(self._session.waiting.limit_s, 120.0)
        end = time.monotonic() + limit
        while why := missing():
            self._session.renew()
            if time.monotonic() >= end:
                raise RolloutError(
                    f"{why} after {limit:.0f} s: KServe before 0.21 starts a canary and gives it no requests, so upgrade it or use "
                    "--form gateway"
                    if percent
                    else f"{why} after {limit:.0f} s: see `kubectl describe httproute {self._service} -n {self._api.namespace}`"
                )
            self._api.sleep(self._session.waiting.poll_s)

    def _drain(self, name: str) -> None:
        """Wait until no gateway sends requests to a Service that the routes no longer name."""
        self._wait_for_share(name, 0)
        pause(self._session, self._session.waiting.drain_s)


def pause(session: Session, seconds: float) -> None:
    """Wait, and keep the lock."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        session.renew()
        session.api.sleep(min(left, session.waiting.poll_s))
