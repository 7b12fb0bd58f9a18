"""The canary of KServe's Knative mode (``canaryTrafficPercent``): the latest revision gets a share, drawn by request.

The new version begins with 0 %. The pods of the version before are those of its revision and are not touched until it has no requests;
a promotion replaces no pod. After a roll-back the old version is served by a new revision with the same content, because Knative
makes a revision for each change; the requests move to it when it is ready.
"""

from __future__ import annotations

from components.cluster.client import Json
from components.deployment.rollout.apply import apply
from components.deployment.rollout.lock import State
from components.deployment.rollout.objects import (
    MODE,
    REVISIONS,
    SERVICES,
    TAGS,
    VERSION_LABEL,
    Version,
    knative_canary,
    service_patch,
    workload,
)
from components.deployment.rollout.target import Live, Session, get_service, smoke, version_of
from components.deployment.rollout.waiting import Fault, predictor_faults, service_fault, wait_for
from thinktwice.errors import RolloutError


class Knative:
    """The form ``knative``."""

    def __init__(self, session: Session) -> None:
        self._session, self._api, self._service = session, session.api, session.service

    def live(self) -> Live:
        found = get_service(self._session, self._service)
        name, metadata, spec = self._service, found["metadata"], found["spec"]
        mode = found.get("status", {}).get("deploymentMode") or metadata.get("annotations", {}).get(MODE)
        if mode not in ("Knative", "Serverless"):
            raise RolloutError(
                f"InferenceService {name} runs in the mode {mode or 'that is the default of the cluster'}, which ignores canaryTrafficPercent: "
                "use --form standard, or gateway"
            )
        if "transformer" in spec:
            raise RolloutError(
                f"InferenceService {name} has a transformer, whose share is drawn apart from the predictor's: use --form gateway"
            )
        predictor = spec["predictor"]
        current, percent = version_of(predictor, name), predictor.get("canaryTrafficPercent")
        if percent is None:
            return Live(stable=current, min_replicas=predictor.get("minReplicas"))
        before = self._revision_version(self._status(found).get("latestRolledoutRevision", ""))
        if before is None:
            raise RolloutError(
                f"InferenceService {name} has canaryTrafficPercent, and no revision was rolled out before: remove the field and wait until it "
                "is Ready"
            )
        return Live(stable=before, canary=current, percent=percent, min_replicas=predictor.get("minReplicas"))

    def canary(self, state: State) -> None:
        assert state.canary is not None
        version, session = state.canary, self._session
        if not self._status(get_service(session, self._service)).get("latestRolledoutRevision"):
            raise RolloutError(
                f"InferenceService {self._service} has no revision that is rolled out, so all requests would go to the canary: wait until it "
                "is Ready"
            )
        live = self.live()
        if live.canary != version:
            self._apply(version, 0)
            session.tell(f"canary {version.name}: made, without requests")
        self._wait_and_test(version)
        session.tell(f"canary {version.name}: ready, and it scores")
        self._apply(version, state.percent)
        self._wait_for_share(version, state.percent)
        session.tell(f"canary {version.name}: {state.percent} % of the requests")

    def promote(self, state: State) -> None:
        assert state.canary is not None
        self._wait_and_test(state.canary)
        self._apply(state.canary, None)
        self._wait_for_share(state.canary, 100)
        self._session.tell(f"{state.canary.name}: serves all requests")

    def roll_back(self, state: State) -> None:
        live = self.live()
        if live.canary is not None and live.canary != state.stable and live.percent:
            self._apply(live.canary, 0)
            self._wait_for_share(live.canary, 0)
            self._session.tell(f"{live.stable.name}: serves all requests")
        if live.canary is None and live.stable == state.stable:
            self._wait_for_share(state.stable, 100)
            return
        self._apply(state.stable, 0)
        self._wait_and_test(state.stable)
        self._apply(state.stable, None)
        self._wait_for_share(state.stable, 100)
        self._session.tell(f"{state.stable.name}: serves all requests")

    def _apply(self, version: Version, percent: int | None) -> None:
        self._session.renew()
        # The annotation stays: taking it away would be a change of the template, and make another revision.
        patch = service_patch(self._service, knative_canary(version, percent), annotations={TAGS: "true"})
        after = apply(self._api, SERVICES, patch, take_over=self._session.take_over)
        if percent is None and "canaryTrafficPercent" in after["spec"]["predictor"]:
            raise RolloutError(
                f"InferenceService {self._service}: canaryTrafficPercent belongs to another manager and is still there: remove it where it was "
                "applied from, and run the command again"
            )

    @staticmethod
    def _status(service: Json) -> Json:
        return dict(service.get("status", {}).get("components", {}).get("predictor", {}))

    def _revision_version(self, name: str) -> Version | None:
        revision = self._api.get(REVISIONS, name) if name else None
        if revision is None:
            return None
        annotations = revision["metadata"].get("annotations", {})
        label = revision["metadata"].get("labels", {}).get(VERSION_LABEL, "")
        uri = annotations.get("internal.serving.kserve.io/storage-initializer-sourceuri", "")
        try:
            return Version(name=label, uri=uri)
        except ValueError:
            return None

    def _has(self, traffic: Json, version: Version) -> bool:
        """Whether an entry of the traffic goes to a revision of this version."""
        revision = self._api.get(REVISIONS, traffic["revisionName"]) if traffic.get("revisionName") else None
        return revision is not None and revision["metadata"].get("labels", {}).get(VERSION_LABEL) == version.name

    def _wait_and_test(self, version: Version) -> None:
        """Wait until the latest revision is ready and has the version; then a test request to its own address."""
        status: Json = {}

        def missing() -> str:
            status.clear()
            status.update(self._status(get_service(self._session, self._service)))
            created, ready = status.get("latestCreatedRevision"), status.get("latestReadyRevision")
            revision = self._api.get(REVISIONS, created) if created else None
            if revision is None or revision["metadata"].get("labels", {}).get(VERSION_LABEL) != version.name:
                return f"no revision has version {version.name} yet"
            return "" if created == ready else f"revision {created} is not ready"

        def faults() -> list[Fault]:
            created = status.get("latestCreatedRevision", "")
            found = predictor_faults(self._api, self._service, version.name, created or workload(self._service))
            return found + service_fault(get_service(self._session, self._service))

        wait_for(
            self._api,
            f"version {version.name} (InferenceService {self._service})",
            missing,
            faults,
            self._session.waiting,
            self._session.renew,
        )
        revision = self._api.get(REVISIONS, status["latestCreatedRevision"])
        if revision is None:
            raise RolloutError(f"revision {status['latestCreatedRevision']} was deleted: run the command again")
        smoke(self._session, {"spec": revision["spec"]}, f"latest-{workload(self._service)}", version.name)

    def _wait_for_share(self, version: Version, percent: int) -> None:
        def missing() -> str:
            status = self._status(get_service(self._session, self._service))
            latest = status.get("latestReadyRevision")
            if percent == 100:
                done = status.get("latestRolledoutRevision") == latest and latest == status.get("latestCreatedRevision")
                return "" if done else f"revision {latest} is not rolled out"
            # By version: the latest revision that is ready is another one while the version's own is not.
            share = sum(t.get("percent") or 0 for t in status.get("traffic", []) if self._has(t, version))
            return "" if share == percent else f"version {version.name} has {share} % instead of {percent} %"

        wait_for(
            self._api,
            f"the share of version {version.name}",
            missing,
            list,
            self._session.waiting,
            self._session.renew,
        )
