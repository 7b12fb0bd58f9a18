"""One experiment of the demonstration from start to end: collect, decide, apply, look by look."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from demo.experiment.crowd import Crowd, TrueEffect
from serving.rollout.collect import collect, now, write_clicks
from serving.rollout.servers import ArmServers
from thinktwice.experiment.exposed import EXPOSED
from thinktwice.experiment.file import CONTROL, ExperimentFile
from thinktwice.experiment.looks import LOOK
from thinktwice.experiment.outcomes import Window
from thinktwice.experiment.record import (
    RECORD,
    DecisionRecord,
    ExperimentState,
    append_decision,
    read_lines,
    state_of,
)
from thinktwice.release.rollout import apply_pending, start_experiment, stop_experiment
from thinktwice.release.rollout_local import LocalRollout

SETTLE = 3.0  # seconds until every log has the rows of a request


@dataclass(frozen=True)
class Place:
    """Folders and processes that all experiments of the demonstration share.

    Attributes:
        records: folder of the records.
        rollout: folder of the local roll-out.
        events: event log of the feedback service.
        clicks: folder of the tables of its clicks.
        window: within which clicks count.
    """

    records: Path
    rollout: Path
    events: Path
    clicks: Path
    window: Window
    servers: ArmServers
    target: LocalRollout


@dataclass(frozen=True)
class LookSeen:
    """What the screen shows after a look."""

    record: DecisionRecord
    state: ExperimentState
    true_effect: TrueEffect | None
    applied: str


def run_experiment(
    file: ExperimentFile,
    place: Place,
    crowd: Crowd,
    look: float,
    on_look: Callable[[LookSeen], None],
) -> LookSeen:
    """Start an experiment and look at it until it ends: by a decision, or by its horizon without one.

    Args:
        look: seconds between two looks.

    Raises:
        ThinktwiceError: a server, the gateway or a log failed.
    """
    start_experiment(place.records, file, place.target)
    crowd.be_busy()
    treatment = file.treatments[0].name
    ports = place.servers.ports()
    crowd.compare(ports[CONTROL], ports[f"{file.name}/{treatment}"])
    path = place.records / file.name / RECORD
    next_look = time.monotonic() + look
    while True:
        while time.monotonic() < next_look:
            place.servers.check()
            time.sleep(0.1)
        next_look = max(next_look + look, time.monotonic() + look / 2)
        state = state_of(read_lines(path))
        at = now() - timedelta(seconds=SETTLE)
        warm = {arm.name: 1 for arm in file.arms}
        tables = write_clicks(place.events, place.clicks)
        evidence = collect(
            state,
            place.rollout,
            tables,
            path.parent / LOOK,
            at=at,
            window=place.window,
            exposed=path.parent / EXPOSED,
            warm_replicas=warm,
        )
        record = append_decision(path, state.file, evidence)
        decision = record.verdict.decision
        applied = ""
        if decision.final:
            crowd.be_quiet()
        if decision.action != "hold":
            change = apply_pending(place.records, file.name, place.target)
            applied = "" if change is None else change.effect
        elif decision.over:
            crowd.be_quiet()
            stop_experiment(place.records, file.name, place.target, decision.reasons[0])
            applied = "stop"
        seen = LookSeen(record, state_of(read_lines(path)), crowd.true_effect(), applied)
        on_look(seen)
        if seen.state.ended is not None:
            crowd.compare_nothing()
            place.servers.follow()
            return seen
