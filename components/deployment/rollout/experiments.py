"""Experiments in a cluster: the roll-out target behind :class:`thinktwice.release.rollout.Rollout`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components.cluster.client import UnreachableError
from components.deployment.rollout.gateway import Gateway
from components.deployment.rollout.lock import LostLockError, read_state
from components.deployment.rollout.objects import SERVICES, Version, version_at
from components.deployment.rollout.run import locked_experiment
from components.deployment.rollout.target import Session, version_of
from thinktwice.errors import ExperimentError, RolloutError, ThinktwiceError
from thinktwice.experiment.file import CONTROL, ExperimentFile
from thinktwice.release.rollout import RolloutStatus, ServedArm


def versions_of_arms(session: Session, file: ExperimentFile, given: Sequence[str]) -> dict[str, Version]:
    """Versions by what an experiment file calls a bundle, from ``ARM=URI``; control is what is served unless it is given.

    Raises:
        ExperimentError: an arm is unknown, or has no version.
    """
    uris = {CONTROL: Gateway(session).live().stable}
    for text in given:
        arm, _, uri = text.partition("=")
        if arm not in {declared.name for declared in file.arms}:
            raise ExperimentError(
                f"{text!r} is not ARM=URI for an arm of {file.name} ({', '.join(a.name for a in file.arms)}): give one per arm"
            )
        uris[arm] = version_at(uri)
    if missing := [arm.name for arm in file.arms if arm.name not in uris]:
        raise ExperimentError(f"arm {missing[0]} of {file.name} has no version: give --arm {missing[0]}=URI")
    return {arm.bundle: uris[arm.name] for arm in file.arms}


class ClusterRollout:
    """The target ``cluster`` of experiments: arms in a namespace, behind the gateway there (see :class:`thinktwice.release.rollout.Rollout`).

    Args:
        versions: versions by what an experiment file calls a bundle; needed to start one.
    """

    def __init__(self, session: Session, versions: Mapping[str, Version] | None = None) -> None:
        self._session, self._versions = session, versions or {}
        self._gateway = Gateway(session)

    def start(self, file: ExperimentFile) -> None:
        """Start the arms, test them, and route.

        Raises:
            ExperimentError: control is not the version that is served, or the version of an arm is not known.
        """
        with locked_experiment(self._session, self._gateway, file, "start") as state:
            known = {arm.name: self._version(arm.bundle) for arm in file.arms}
            if known[CONTROL].name != state.stable.name:
                raise ExperimentError(
                    f"the control of {file.name} is version {known[CONTROL].name} and {state.stable.name} is served: everybody outside the "
                    "experiment gets control, so it must be the same; name the served version as control"
                )
            self._gateway.start_arms({arm.name: known[arm.name] for arm in file.treatments})
            self._gateway.route(file)

    def weight(self, file: ExperimentFile) -> None:
        """Route with another coverage; 0 gives everybody control."""
        with locked_experiment(self._session, self._gateway, file, "weight"):
            self._gateway.route(file) if file.coverage else self._gateway.route_nobody(file)

    def promote(self, file: ExperimentFile, arm: str) -> None:
        """Make an arm's version that of control, and end the experiment. Does nothing if that is done.

        Raises:
            RolloutError: the version does not become ready; control serves what it served, and the experiment goes on.
        """
        with locked_experiment(self._session, self._gateway, file, "promote") as state:
            found = self._session.api.get(SERVICES, self._gateway.name(arm))
            if found is not None:
                version = version_of(found["spec"]["predictor"], self._gateway.name(arm))
                if failed := self._set_control(version, state.stable):
                    raise RolloutError(
                        f"the promotion of {version.name} failed and was taken back, {state.stable.name} keeps serving as control: {failed}"
                    )
            self._gateway.end(file)

    def roll_back(self, file: ExperimentFile) -> None:
        """Give everybody control, and end the experiment. Control serves what it did before a promotion that was interrupted."""
        with locked_experiment(self._session, self._gateway, file, "rollback") as state:
            self._gateway.leave_arms(file)
            if state.served not in (None, state.stable):
                self._set_control(state.stable, state.served)
            self._gateway.end(file)

    def _set_control(self, version: Version, served: Version) -> str:
        """Make a version that of control. If it does not start, control serves what it served; returns why, "" if it has started."""
        try:
            self._gateway.set_control(version)
        except (LostLockError, UnreachableError):
            raise
        except ThinktwiceError as error:
            self._session.tell(f"version {version.name} failed as control, so {served.name} is restored: {error}")
            self._gateway.set_control(served)
            return str(error)
        return ""

    def status(self) -> RolloutStatus:
        """What is served now."""
        state = read_state(self._session.api, self._session.service)
        arms = []
        names = [CONTROL] if state is None or state.experiment is None else [arm.name for arm in state.experiment.arms]
        for arm in names:
            found = self._session.api.get(SERVICES, self._gateway.name(arm))
            if found is not None:
                version = version_of(found["spec"]["predictor"], self._gateway.name(arm))
                name = (
                    arm
                    if arm == CONTROL or state is None or state.experiment is None
                    else f"{state.experiment.name}/{arm}"
                )
                arms.append(ServedArm(name=name, model_version=version.name, bundle_hash="", where=version.uri))
        coverage = (
            {} if state is None or state.experiment is None else {state.experiment.name: state.experiment.coverage}
        )
        return RolloutStatus(arms=tuple(arms), coverage=coverage)

    def _version(self, bundle: str) -> Version:
        if bundle not in self._versions:
            raise ExperimentError(f"no version {bundle!r} is known: push it with `thinktwice bundle push` first")
        return self._versions[bundle]
