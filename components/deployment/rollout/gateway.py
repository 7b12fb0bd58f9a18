"""Two arms behind our Envoy: ``SERVICE-control`` and ``SERVICE-treatment`` are InferenceServices of their own, and the gateway keeps each
user in one arm. Works in every release and mode of KServe, and the address of the model, the gateway, never changes.

Every change of the routes passes through a file in which all arms are known and nobody is enrolled: of clusters and routes, either may
reach a pod of the gateway first. An arm is removed only after no pod of the gateway sends requests to it.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Mapping

from components.deployment.rollout.apply import apply
from components.deployment.rollout.lock import State
from components.deployment.rollout.objects import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    SERVICES,
    VERSION_LABEL,
    Version,
    arm_service,
    config_map,
    host,
    service_patch,
    workload,
)
from components.deployment.rollout.probe import PATH
from components.deployment.rollout.standard import pause
from components.deployment.rollout.target import (
    Live,
    Session,
    get_service,
    probe,
    smoke,
    version_of,
    wait_for_deployment,
)
from components.deployment.rollout.waiting import wait_for
from thinktwice.errors import ExperimentError, RolloutError
from thinktwice.experiment.assignment import assign, bucket_of, layout_of
from thinktwice.experiment.file import CONTROL, ExperimentFile
from thinktwice.experiment.gateway_config import Endpoint, GatewayConfig
from thinktwice.experiment.route_check import TrafficSplit, check_routes, read_split
from thinktwice.experiment.routes import CLUSTERS, ROUTES, cluster_of, render
from thinktwice.files import parse_json, sha256_text

TREATMENT = "treatment"
CANARY = "canary"  # name of the experiment that routes a canary
#: As manifests/overlays/experiment/gateway/gateway.yaml has them.
GATEWAY = GatewayConfig(
    folder="/etc/gateway",
    log_folder="/var/log/gateway",
    watch_folder=True,
    listen=Endpoint(host="0.0.0.0", port=8080),  # noqa: S104 (in a pod; a network policy decides who reaches it)
)
LOOKS = 20  # requests, each on a connection of its own, that reach all pods of the gateway
MOST_PERCENT = 50  # arms have equal parts


class Gateway:
    """The form ``gateway``."""

    def __init__(self, session: Session) -> None:
        self._session, self._api, self._service = session, session.api, session.service

    def live(self) -> Live:
        control = get_service(self._session, self.name(CONTROL))
        if self._api.get(CONFIG_MAPS, f"{self._service}-gateway") is None:
            raise RolloutError(
                f"namespace {self._api.namespace} has no ConfigMap {self._service}-gateway: apply manifests/overlays/experiment first"
            )
        stable = version_of(control["spec"]["predictor"], self.name(CONTROL))
        return Live(stable=stable, min_replicas=control["spec"]["predictor"].get("minReplicas"))

    def name(self, arm: str) -> str:
        """Name of an arm's InferenceService."""
        return f"{self._service}-{arm}"

    def canary(self, state: State) -> None:
        assert state.canary is not None and state.experiment is not None
        self.start_arms({TREATMENT: state.canary})
        self.route(state.experiment)
        self._session.tell(f"canary {state.canary.name}: {state.percent} % of the users")

    def promote(self, state: State) -> None:
        assert state.canary is not None
        self.set_control(state.canary)
        self.end(state.experiment)

    def roll_back(self, state: State) -> None:
        self.leave_arms(state.experiment)
        self.set_control(state.stable)
        self.end(state.experiment)

    def start_arms(self, arms: Mapping[str, Version]) -> None:
        """Start arms beside control and test them; they get no requests yet."""
        control = get_service(self._session, self.name(CONTROL))
        for arm, version in arms.items():
            self._session.renew()
            apply(self._api, SERVICES, arm_service(control, arm, version), take_over=self._session.take_over)
        for arm, version in arms.items():
            self._ready(arm, version)
            self._session.tell(f"arm {arm}: version {version.name} is ready, and it scores")

    def set_control(self, version: Version) -> None:
        """Make a version that of control: its pods are replaced one by one, its name and address stay."""
        self._session.renew()
        fields = {"labels": {VERSION_LABEL: version.name}, "model": {"storageUri": version.uri}}
        apply(self._api, SERVICES, service_patch(self.name(CONTROL), fields), take_over=self._session.take_over)
        self._ready(CONTROL, version)
        self._session.tell(f"{version.name}: all pods of {workload(self.name(CONTROL))} serve it")

    def route(self, experiment: ExperimentFile) -> None:
        """Route as an experiment says, and make sure that the gateway does."""
        arms = [arm.name for arm in experiment.arms]
        if self._routed() != tuple(sorted(cluster_of(experiment.name, arm) for arm in arms)):
            self._write(experiment.model_copy(update={"coverage": 0.0}), arms)
            pause(self._session, self._session.waiting.spread_s)
        self._write(experiment, arms)
        self._seen(experiment)

    def leave_arms(self, experiment: ExperimentFile | None) -> ExperimentFile | None:
        """Write routes that give everybody control, whether control answers or not. Returns their file, None if no arm has a route."""
        if experiment is None or self._routed() in ((), (CONTROL,)):
            return None
        nobody = experiment.model_copy(update={"coverage": 0.0})
        self._write(nobody, [arm.name for arm in experiment.arms])
        return nobody

    def route_nobody(self, experiment: ExperimentFile | None) -> None:
        """Give everybody control, and make sure that the gateway does."""
        nobody = self.leave_arms(experiment)
        if experiment is None or nobody is None:
            return
        self._seen(nobody, enrolled=experiment.model_copy(update={"coverage": 1.0}))
        pause(self._session, self._session.waiting.drain_s)
        self._session.tell("everybody gets control")

    def end(self, experiment: ExperimentFile | None) -> None:
        """Give everybody control, then remove the other arms and their clusters."""
        self.route_nobody(experiment)
        self._write(None, [CONTROL])
        arms = [arm.name for arm in experiment.arms[1:]] if experiment is not None else [TREATMENT]
        for arm in arms:
            self._api.delete(SERVICES, self.name(arm))
        for arm in arms:
            wait_for(
                self._api,
                f"the end of arm {arm}",
                lambda arm=arm: (
                    "it still exists"  # type: ignore[misc]
                    if self._api.get(DEPLOYMENTS, workload(self.name(arm))) is not None
                    or self._api.get(SERVICES, self.name(arm)) is not None
                    else ""
                ),
                list,
                self._session.waiting,
                self._session.renew,
            )

    def _ready(self, arm: str, version: Version) -> None:
        name = workload(self.name(arm))
        deployment = wait_for_deployment(self._session, self.name(arm), name, version.name)
        smoke(self._session, deployment["spec"]["template"], name, version.name)

    def _files(self) -> dict[str, str]:
        found = self._api.get(CONFIG_MAPS, f"{self._service}-gateway")
        return dict((found or {}).get("data", {}))

    def _routed(self) -> tuple[str, ...]:
        """Names of the arms' clusters in the living file of clusters."""
        try:
            resources = parse_json(self._files().get(CLUSTERS, "{}").encode()).get("resources", [])
            names = {str(resource["name"]) for resource in resources}
        except (ValueError, KeyError, TypeError, AttributeError):
            return ()  # of another version: it is replaced
        return tuple(sorted(name for name in names if not name.endswith(("_own", "_ready", "_shadow"))))

    def _write(self, experiment: ExperimentFile | None, arms: list[str]) -> None:
        """Write clusters and routes, checked against the living ones."""
        self._session.renew()
        data = self._files()
        endpoints = {
            (CONTROL if experiment is None else cluster_of(experiment.name, arm)): [
                Endpoint(host=workload(self.name(arm)), port=80)
            ]
            for arm in arms
        }
        serial = int((re.search(r'"version_info": ?"\d+-(\d+)-', data.get(ROUTES, "")) or [0, 0])[1]) + 1
        experiments = [] if experiment is None else [experiment]
        files = dict(render(experiments, endpoints, GATEWAY, serial).files())
        check_routes(files[ROUTES], files[CLUSTERS], experiments, self._live_split(data, experiment))
        content = {name: text.decode() for name, text in files.items()}
        apply(
            self._api,
            CONFIG_MAPS,
            config_map(f"{self._service}-gateway", content),
            take_over=self._session.take_over,
        )

    def _live_split(self, data: dict[str, str], experiment: ExperimentFile | None) -> TrafficSplit | None:
        """The living routes, if the new ones continue their experiment."""
        if experiment is None or not experiment.coverage or experiment.name == CANARY or ROUTES not in data:
            return None
        try:
            split = read_split(data[ROUTES].encode(), data.get(CLUSTERS, "").encode())
        except ExperimentError:
            return None  # of another version: they are replaced
        return split if split.salt == experiment.salt else None

    def _seen(self, wanted: ExperimentFile, enrolled: ExperimentFile | None = None) -> None:
        """Wait until all pods of the gateway give enrolled users the arm that ``wanted`` says.

        Args:
            enrolled: the experiment by which users are chosen; ``wanted`` itself by default.
        """
        unit = enrolled_unit(enrolled or wanted)
        expected = assign(layout_of([wanted]), unit).arm
        template = self._api.get(DEPLOYMENTS, workload(self.name(CONTROL)))
        if template is None:
            raise RolloutError(
                f"deployment {workload(self.name(CONTROL))} does not exist: apply manifests/overlays/experiment first"
            )
        url = f"http://{host(self._api.namespace, f'{self._service}-gateway')}{PATH}"
        end = time.monotonic() + max(self._session.waiting.limit_s, self._session.waiting.spread_s)
        while True:
            probed = probe(self._session, template["spec"]["template"], url, unit=unit, count=LOOKS)
            if probed.arms.get(expected) == LOOKS:
                return
            if time.monotonic() >= end:
                raise RolloutError(
                    f"the gateway gives the user {unit} {dict(probed.arms) or dict(probed.statuses)} instead of {expected}: its pods have not "
                    f"taken the ConfigMap {self._service}-gateway; see `kubectl logs -n {self._api.namespace} "
                    f"-l app.kubernetes.io/name={self._service}-gateway`"
                )
            pause(self._session, min(5.0, self._session.waiting.poll_s))


def enrolled_unit(file: ExperimentFile) -> str:
    """A unit to which a file gives its last arm: found for every coverage above 0, since each arm then has a bucket at least.

    Raises:
        RolloutError: the coverage is 0.
    """
    layout, arm = layout_of([file]), file.arms[-1].name
    place = next((part for part in layout.ranges if part.arm == arm and part.enrolled), None)
    if place is None:
        raise RolloutError(f"the coverage of {file.name} is 0, so arm {arm} has no users: give a larger one")
    units = (f"rollout-{n}" for n in itertools.count())
    return next(unit for unit in units if place.start <= bucket_of(layout.salt, unit) < place.stop)


def canary_experiment(stable: Version, canary: Version, percent: int) -> ExperimentFile:
    """The split of a canary: treatment gets ``percent`` of the users, always the same ones.

    Raises:
        RolloutError: arms have equal parts, so a share above a half is none.
    """
    if percent > MOST_PERCENT:
        raise RolloutError(
            f"a share of {percent} % is not possible with --form gateway, whose arms have equal parts: give at most {MOST_PERCENT}"
        )
    return ExperimentFile.model_validate(
        {
            "version": 1,
            "name": CANARY,
            "salt": f"canary-{sha256_text(canary.name)[:12]}",
            "arms": [
                {"name": CONTROL, "bundle": stable.name[:200]},
                {"name": TREATMENT, "bundle": canary.name[:200]},
            ],
            "coverage": 2 * percent / 100,
            "horizon": {"days": 1, "looks": 1},
            "minimum": {"days": 0, "units": 2},
        }
    )
