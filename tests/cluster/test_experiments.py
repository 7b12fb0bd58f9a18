"""The target ``cluster`` behind the roll-out interface of experiments: start, ramp, promote and roll back under load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from components.deployment.rollout.experiments import ClusterRollout, versions_of_arms
from components.deployment.rollout.lock import read_state
from components.deployment.rollout.run import canary
from components.deployment.rollout.target import Session
from tests.cluster.api_process import Api
from tests.cluster.objects_store import Json
from tests.cluster.served import V1, V2, V3, install, load, session
from tests.cluster.test_rollout import GATEWAY_URL
from thinktwice.errors import ExperimentError, RolloutError
from thinktwice.experiment.file import ExperimentFile
from thinktwice.release.rollout import change_coverage, start_experiment, stop_experiment

Overlay = Callable[[str], list[Json]]


def declared(name: str, treatment: str = "two") -> ExperimentFile:
    content = {
        "version": 1, "name": name, "salt": name,
        "arms": [{"name": "control", "bundle": "one"}, {"name": "treatment", "bundle": treatment}],
        "ramp": [{"coverage": 0.2}, {"coverage": 1.0, "after_days": 0}],
        "horizon": {"days": 1, "looks": 2}, "minimum": {"days": 0, "units": 2},
    }  # fmt: skip
    return ExperimentFile.model_validate(content)


def target(api: Api, file: ExperimentFile, uri: str = V2.uri, here: Session | None = None) -> ClusterRollout:
    here = here or session(api)
    return ClusterRollout(here, versions_of_arms(here, file, [f"treatment={uri}"]))


def test_start_ramp_stop_and_promotion_lose_nothing(api: Api, overlay: Overlay, tmp_path: Path) -> None:
    install(api, overlay("experiment"))
    file = declared("first")
    with load(api, GATEWAY_URL) as traffic:
        start_experiment(tmp_path, file, target(api, file))
        start_experiment(tmp_path, file, target(api, file))
        status = target(api, file).status()
        assert status.coverage == {"first": 0.2}
        assert [(arm.name, arm.model_version) for arm in status.arms] == [
            ("control", V1.name),
            ("first/treatment", V2.name),
        ]
        change_coverage(tmp_path, "first", 1.0, target(api, file))
        with pytest.raises(RolloutError, match="the experiment first runs here: end it first"):
            canary(session(api), V3, 10)
        other = declared("other")
        with pytest.raises(RolloutError, match="first runs in this namespace: end it before other"):
            start_experiment(tmp_path, other, target(api, other))
        stop_experiment(tmp_path, "first", target(api, file))
        stop_experiment(tmp_path, "first", target(api, file))
        assert sorted(api.objects("inferenceservices")) == ["ctr-control"]
        second = declared("second")
        start_experiment(tmp_path, second, target(api, second))
        target(api, second).promote(second, "treatment")
        target(api, second).promote(second, "treatment")
        assert [(a.name, a.model_version) for a in target(api, second).status().arms] == [("control", V2.name)]
    assert traffic.failed == 0 and set(traffic.versions) == {V1.name, V2.name}, traffic.statuses


def test_an_arm_that_does_not_start_changes_no_route(api: Api, overlay: Overlay, tmp_path: Path) -> None:
    install(api, overlay("experiment"))
    api.control(broken={V2.name: "image"})
    file = declared("first")
    with load(api, GATEWAY_URL) as traffic, pytest.raises(RolloutError, match="cannot be pulled"):
        start_experiment(tmp_path, file, target(api, file))
    assert traffic.failed == 0 and set(traffic.versions) == {V1.name}
    # It has no record, so `stop` could not end it: nothing may be left (test_interrupted.py: also if it was killed before).
    assert not list(tmp_path.glob("*/*")) and sorted(api.objects("inferenceservices")) == ["ctr-control"]
    state = read_state(session(api).api, "ctr")
    assert state is not None and (state.action, state.experiment) == ("", None)
    api.control(broken={})
    start_experiment(tmp_path, file, target(api, file))


def test_the_versions_of_arms(api: Api, overlay: Overlay) -> None:
    install(api, overlay("experiment"))
    file = declared("first")
    with pytest.raises(ExperimentError, match="arm treatment of first has no version: give --arm treatment=URI"):
        versions_of_arms(session(api), file, [])
    with pytest.raises(
        ExperimentError, match=r"'x=s3://b/v' is not ARM=URI for an arm of first \(control, treatment\)"
    ):
        versions_of_arms(session(api), file, ["x=s3://b/v"])
    wrong = ClusterRollout(
        session(api), versions_of_arms(session(api), file, [f"control={V3.uri}", f"treatment={V2.uri}"])
    )
    with pytest.raises(ExperimentError, match=f"control of first is version {V3.name} and {V1.name} is served"):
        wrong.start(file)
