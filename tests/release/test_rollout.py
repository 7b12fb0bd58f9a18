"""The roll-out: decisions are carried out once, whatever was killed in between, and every target does the same."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from tests.experiment.evidence import T0, evidence
from tests.experiment.files import experiment, grouped
from thinktwice.errors import BundleError, ExperimentError
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.record import RECORD, append_decision, read_lines, state_of
from thinktwice.experiment.route_check import read_split
from thinktwice.experiment.routes import CLUSTERS, ROUTES
from thinktwice.release.rollout import (
    RolloutStatus,
    ServedArm,
    apply_pending,
    change_coverage,
    running_experiments,
    start_experiment,
    stop_experiment,
)
from thinktwice.release.rollout_kserve import CONFIG_MAP, KServeRollout, KServeSettings

FILE = experiment(
    ramp=[{"coverage": 0.1}, {"coverage": 0.5, "after_days": 0.5}],
    horizon={"days": 14, "looks": 14},
    minimum={"days": 3, "units": 500},
)


class Killed(Exception):  # noqa: N818 - not an error of ours
    """The process ended here."""


class Target:
    """A target that remembers its calls, and ends in the middle of one of them if told so."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self.kill = False

    def _called(self, name: str, coverage: float) -> None:
        self.calls.append((name, coverage))
        if self.kill:
            self.kill = False
            raise Killed

    def start(self, file: ExperimentFile) -> None:
        self._called("start", file.coverage)

    def weight(self, file: ExperimentFile) -> None:
        self._called("weight", file.coverage)

    def promote(self, file: ExperimentFile, arm: str) -> None:
        self._called(f"promote {arm}", 0.0)

    def roll_back(self, file: ExperimentFile) -> None:
        self._called("roll_back", 0.0)

    def status(self) -> RolloutStatus:
        return RolloutStatus(arms=(), coverage={})


def look(records: Path, days: float, **rates: dict[str, float]) -> str:
    path = records / FILE.name / RECORD
    state = state_of(read_lines(path))
    return append_decision(path, state.file, evidence(state.file, days, **rates)).verdict.decision.action


@pytest.mark.parametrize("kill", [False, True])
def test_ramp_and_promotion(tmp_path: Path, kill: bool) -> None:
    target = Target()
    target.kill = kill
    if kill:
        with pytest.raises(Killed):
            start_experiment(tmp_path, FILE, target, T0)
        assert running_experiments(tmp_path) == []
    assert start_experiment(tmp_path, FILE, target, T0).file.coverage == 0.1
    assert [file.coverage for file in running_experiments(tmp_path)] == [0.1]
    assert apply_pending(tmp_path, FILE.name, target) is None
    assert look(tmp_path, 1) == "ramp"
    target.kill = kill
    if kill:
        with pytest.raises(Killed):
            apply_pending(tmp_path, FILE.name, target)
    change = apply_pending(tmp_path, FILE.name, target, T0 + timedelta(days=1))
    assert change is not None and (change.effect, change.coverage) == ("ramp", 0.5)
    assert apply_pending(tmp_path, FILE.name, target) is None
    assert look(tmp_path, 4, t1={"lift": 0.5}) == "promote"
    target.kill = kill
    if kill:
        with pytest.raises(Killed):
            apply_pending(tmp_path, FILE.name, target)
    change = apply_pending(tmp_path, FILE.name, target)
    assert change is not None and (change.effect, change.arm, change.coverage) == ("promote", "t1", 0.0)
    once = [("start", 0.1), ("weight", 0.5), ("promote t1", 0.0)]
    assert target.calls == ([call for call in once for _ in range(2)] if kill else once)
    with pytest.raises(ExperimentError, match="has ended"):
        start_experiment(tmp_path, FILE, target)
    with pytest.raises(ExperimentError, match="does not run"):
        stop_experiment(tmp_path, FILE.name, target)


def test_a_worse_treatment_is_rolled_back(tmp_path: Path) -> None:
    target = Target()
    start_experiment(tmp_path, FILE, target, T0)
    assert look(tmp_path, 4, t1={"lift": -0.6}) == "roll_back"
    assert apply_pending(tmp_path, FILE.name, target) is not None
    assert target.calls[-1] == ("roll_back", 0.0) and running_experiments(tmp_path) == []


def test_by_hand(tmp_path: Path) -> None:
    target = Target()
    with pytest.raises(ExperimentError, match="no record"):
        change_coverage(tmp_path, FILE.name, 0.5, target)
    start_experiment(tmp_path, FILE, target, T0)
    with pytest.raises(ExperimentError, match="can only rise"):
        change_coverage(tmp_path, FILE.name, 0.05, target)
    assert change_coverage(tmp_path, FILE.name, 0.25, target, "looks well").why == "looks well"
    assert stop_experiment(tmp_path, FILE.name, target, "enough").effect == "stop"
    assert stop_experiment(tmp_path, FILE.name, target).why == "enough"  # again: only the target is asked
    assert [name for name, _ in target.calls] == ["start", "weight", "roll_back", "roll_back"]
    with pytest.raises(ExperimentError, match="enrolls nobody"):
        start_experiment(tmp_path, experiment("empty"), target)


VERSIONS = {
    bundle: ServedArm(name="", model_version=f"m-{bundle}", bundle_hash=bundle * 8, where=f"s3://models/m-{bundle}/")
    for bundle in ("b0", "b1")
}


def resources(folder: Path) -> dict[str, str]:
    """storageUri of every rendered InferenceService."""
    rendered = [yaml.safe_load(path.read_text()) for path in folder.glob("inferenceservice-*.yaml")]
    return {r["metadata"]["name"]: r["spec"]["predictor"]["model"]["storageUri"] for r in rendered}


def enrolled(folder: Path) -> dict[str, int]:
    """Enrolled buckets by arm in the rendered routes."""
    data = yaml.safe_load((folder / CONFIG_MAP).read_text())["data"]
    split = read_split(data[ROUTES].encode(), data[CLUSTERS].encode())
    return {r.arm: r.stop - r.start for r in split.ranges if r.enrolled}


def test_files_for_a_cluster(tmp_path: Path) -> None:
    records, folder = tmp_path / "records", tmp_path / "cluster"
    target = KServeRollout(folder, KServeSettings(storage="s3://models/{model_version}/"), VERSIONS)
    start_experiment(records, FILE, target, T0)
    assert resources(folder) == {"ctr-control": "s3://models/m-b0/", "ctr-exp1-t1": "s3://models/m-b1/"}
    assert enrolled(folder) == {"control": 500, "t1": 500}
    again = KServeRollout.opened(folder)
    change_coverage(records, FILE.name, 0.5, again)
    assert enrolled(folder) == {"control": 2500, "t1": 2500} and again.status().coverage == {"exp1": 0.5}
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(p.name for p in folder.glob("*.yaml") if p.name != "kustomization.yaml")
    for path in folder.glob("settings-*.yaml"):
        arm = yaml.safe_load(yaml.safe_load(path.read_text())["data"]["serving.yaml"])["arm"]
        assert arm == ("t1" if "exp1" in path.name else "control")
    again.promote(FILE, "t1")
    again.promote(FILE, "t1")
    assert resources(folder) == {"ctr-control": "s3://models/m-b1/"} and enrolled(folder) == {}


def test_a_roll_back_in_a_cluster_leaves_control_alone(tmp_path: Path) -> None:
    records, folder = tmp_path / "records", tmp_path / "cluster"
    target = KServeRollout(folder, KServeSettings(storage="s3://models/{model_version}/"), VERSIONS)
    start_experiment(records, FILE, target, T0)
    stop_experiment(records, FILE.name, target)
    assert resources(folder) == {"ctr-control": "s3://models/m-b0/"} and enrolled(folder) == {}
    other = experiment("exp2", coverage=0.1, arms=2).model_copy(
        update={"arms": (FILE.arms[0].model_copy(update={"bundle": "b1"}), FILE.arms[1])}
    )
    with pytest.raises(ExperimentError, match="everybody outside the experiment gets control"):
        target.start(other)
    with pytest.raises(BundleError, match="no version 'b7' is known"):
        target.start(
            experiment("exp3", coverage=0.1).model_copy(
                update={"arms": (FILE.arms[0], FILE.arms[1].model_copy(update={"bundle": "b7"}))}
            )
        )
    with pytest.raises(BundleError, match=r"contains no rollout\.json"):
        KServeRollout.opened(tmp_path / "nothing")


@pytest.mark.parametrize("ended", [False, True])
def test_a_salt_or_a_range_is_not_used_twice(tmp_path: Path, ended: bool) -> None:
    """The users of a second experiment with the same salt would be split as in the first one, whose effects they carry."""
    target = Target()
    first = grouped("first", 0, 4000, coverage=1.0)
    for file in (FILE, first):
        start_experiment(tmp_path, file, target, T0)
        if ended:
            stop_experiment(tmp_path, file.name, target, "enough")
    before = list(target.calls)
    refused = {
        "use the salt": experiment("again", salt=FILE.salt, coverage=1.0),
        "overlap in the buckets 3000 to 4000": grouped("more", 3000, 5000, coverage=1.0),
        "the salt 'g-1'": experiment("outside", salt="g-1", coverage=1.0),
    }
    for words, file in refused.items():
        with pytest.raises(ExperimentError, match=words):
            start_experiment(tmp_path, file, target, T0)
        assert not (tmp_path / file.name / RECORD).exists()
    assert target.calls == before, "no route changed"
    new_control = grouped("beside", 4000, 8000, coverage=1.0).model_dump()
    new_control["arms"][0]["bundle"] = "promoted"
    if ended:  # the champion may have changed since
        start_experiment(tmp_path, ExperimentFile.model_validate(new_control), target, T0)
    else:
        with pytest.raises(ExperimentError, match="need one control bundle"):
            start_experiment(tmp_path, ExperimentFile.model_validate(new_control), target, T0)
        start_experiment(tmp_path, grouped("beside", 4000, 8000, coverage=1.0), target, T0)
