"""Roll-out of an experiment: one interface for every place where arms are served, and the application of decisions.

A target is told what should be; it knows nothing of evidence. Every call can be repeated: after a kill the same call
completes what the first one began. The record of the experiment says what is complete.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from thinktwice.errors import ExperimentError
from thinktwice.experiment.changes import conflicts, forbidden_changes, reuses
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.record import (
    RECORD,
    EffectRecord,
    ExperimentState,
    Line,
    StartRecord,
    append_effect,
    append_start,
    read_lines,
    state_of,
)
from thinktwice.frozen import Frozen


class ServedArm(Frozen):
    """What serves an arm.

    Attributes:
        name: ``control``, or ``EXPERIMENT/ARM``.
        model_version, bundle_hash: the version.
        where: folder or URI of the version.
    """

    name: str
    model_version: str
    bundle_hash: str
    where: str


class RolloutStatus(Frozen):
    """What a target serves: arms, and the coverage of each experiment."""

    arms: tuple[ServedArm, ...]
    coverage: dict[str, float]


class Rollout(Protocol):
    """A place where arms are served."""

    def start(self, file: ExperimentFile) -> None:
        """Serve the arms of an experiment, with its coverage."""

    def weight(self, file: ExperimentFile) -> None:
        """Route with the coverage of ``file``; 0 gives everybody control."""

    def promote(self, file: ExperimentFile, arm: str) -> None:
        """Make an arm's version the champion, and end the experiment."""

    def roll_back(self, file: ExperimentFile) -> None:
        """Give everybody control, and end the experiment."""

    def status(self) -> RolloutStatus:
        """What is served now."""


def start_experiment(
    records: Path, file: ExperimentFile, target: Rollout, at: datetime | None = None
) -> ExperimentState:
    """Start an experiment with its own coverage, or with that of the first step of its ramp. A second call completes the first.

    Args:
        records: folder with a folder for each experiment.

    Raises:
        ExperimentError: it was started with another file, has ended, or enrolls nobody; it conflicts with another experiment that runs,
            or has the salt of one that has ended; or the target refuses it.
    """
    coverage = file.coverage or (file.ramp[0].coverage if file.ramp else 0.0)
    if not coverage:
        raise ExperimentError(f"{file.name} enrolls nobody: set coverage, or a ramp")
    path = records / file.name / RECORD
    if lines := read_lines(path):
        state = state_of(lines)
        if state.started is None:
            raise ExperimentError(f"{file.name} has decisions already: start it under a new name and salt")
        if problems := forbidden_changes(state.file, file.model_copy(update={"coverage": state.file.coverage})):
            raise ExperimentError(f"{file.name} was started with another file: " + "; ".join(problems))
        if state.ended is not None:
            raise ExperimentError(
                f"{file.name} has ended ({state.ended.replace('_', ' ')}): start a new experiment with a new name and salt"
            )
        coverage = state.file.coverage
    file = file.model_copy(update={"coverage": coverage})
    _check_beside(records, file)
    target.start(file)
    append_start(path, file, at or _now())
    return state_of(read_lines(path))


def _check_beside(records: Path, file: ExperimentFile) -> None:
    """Refuse an experiment that conflicts with another one of the records, which runs or has ended."""
    problems = []
    for path in sorted(records.glob(f"*/{RECORD}")):
        lines = read_lines(path)
        if not lines or (other := state_of(lines)).file.name == file.name:
            continue
        problems += conflicts([other.file, file]) if other.runs else reuses(other.file, file)
    if problems:
        raise ExperimentError("; ".join(problems))


def apply_pending(records: Path, name: str, target: Rollout, at: datetime | None = None) -> EffectRecord | None:
    """Carry out the last decision of an experiment, if that is not done; then record that it is done.

    Raises:
        ExperimentError: the experiment has no record, or the target refuses.
    """
    path = records / name / RECORD
    state = state_of(_lines(records, name))
    if state.pending is None or state.started is None:
        return None
    decision, number = state.pending.verdict.decision, state.pending.number
    if decision.action == "ramp":
        coverage = decision.coverage or 0.0
        target.weight(state.file.model_copy(update={"coverage": coverage}))
        return append_effect(path, "ramp", coverage, at or _now(), decision=number)
    if decision.action == "promote":
        if decision.arm is None:
            raise ExperimentError(f"line {number} of {path} promotes no arm: give the number of a decision to promote")
        target.promote(state.file, decision.arm)
        return append_effect(path, "promote", 0.0, at or _now(), decision=number, arm=decision.arm)
    target.roll_back(state.file)
    return append_effect(path, "roll_back", 0.0, at or _now(), decision=number)


def change_coverage(records: Path, name: str, coverage: float, target: Rollout, why: str = "") -> EffectRecord:
    """Raise the coverage by hand.

    Raises:
        ExperimentError: the experiment does not run, or the coverage is not above the present one.
    """
    state = _running(records, name)
    if coverage <= state.file.coverage:
        raise ExperimentError(
            f"{name} has a coverage of {state.file.coverage:.2%}: it can only rise; `thinktwice experiment stop` ends it"
        )
    file = ExperimentFile.model_validate(state.file.model_dump() | {"coverage": coverage})
    target.weight(file)
    return append_effect(records / name / RECORD, "ramp", file.coverage, _now(), why=why)


def stop_experiment(records: Path, name: str, target: Rollout, why: str = "") -> EffectRecord:
    """Give everybody control at once and end the experiment. Doing it again repeats the roll-back of the target.

    Raises:
        ExperimentError: the experiment was not started, or ended with a promotion.
    """
    state = state_of(_lines(records, name))
    if state.started is None or state.ended == "promote":
        raise ExperimentError(f"{name} does not run: `thinktwice experiment status {name}` says why")
    target.roll_back(state.file)
    if state.ended is not None:
        last = read_lines(records / name / RECORD)[-1]
        if isinstance(last, EffectRecord):
            return last
    return append_effect(records / name / RECORD, "stop", 0.0, _now(), why=why)


def running_experiments(records: Path) -> list[ExperimentFile]:
    """Files of the experiments that run, with their coverage."""
    states = (state_of(read_lines(path)) for path in sorted(records.glob(f"*/{RECORD}")) if path.stat().st_size)
    return [state.file for state in states if state.runs]


def known_experiments(records: Path) -> list[ExperimentFile]:
    """Files of all experiments that were ever started."""
    files = []
    for path in sorted(records.glob(f"*/{RECORD}")):
        lines = read_lines(path)
        if lines and isinstance(lines[0], StartRecord):
            files.append(lines[0].file)
    return files


def _running(records: Path, name: str) -> ExperimentState:
    state = state_of(_lines(records, name))
    if not state.runs:
        raise ExperimentError(f"{name} does not run: `thinktwice experiment status {name}` says why")
    return state


def _lines(records: Path, name: str) -> tuple[Line, ...]:
    lines = read_lines(records / name / RECORD)
    if not lines:
        raise ExperimentError(
            f"no record of the experiment {name!r} in {records}: `thinktwice experiment list` lists them"
        )
    return lines


def _now() -> datetime:
    return datetime.now(timezone.utc)
