"""A look of the experiment pipeline, step by step: what it is about, the join, the evidence, the decision.

The join reads what is new since the last look (``looks.py``); what it keeps for the next one lies beside the record.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from thinktwice.errors import ExperimentError, reason
from thinktwice.experiment.access_logs import frozen_access_logs
from thinktwice.experiment.before import sums_before
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.exposed import EXPOSED, remember_exposed
from thinktwice.experiment.gather import Joined, Sources, evidence_of
from thinktwice.experiment.join import Logs, raw_unit_column
from thinktwice.experiment.looks import LOOK, join_look
from thinktwice.experiment.outcomes import Window
from thinktwice.experiment.query import shared_engine
from thinktwice.experiment.record import RECORD, DecisionRecord, ExperimentState, append_decision, read_lines, state_of
from thinktwice.experiment.unit_sums import LATENCY, UNITS
from thinktwice.files import atomic_dir, read_json, write_json
from thinktwice.frozen import Frozen

SNAPSHOT, JOINED = "snapshot.json", "joined.json"
BEFORE = "before"  # folder of the sums of the days before


class Snapshot(Frozen):
    """Content of ``snapshot.json``: the state of the experiment at a look, and its logs, which are complete up to ``at``.

    Attributes:
        access_logs: folder with ``access*.log``.
        prediction_logs, clicks: folders of parquet files, with any subfolders.
    """

    format: int = 2
    at: AwareDatetime
    state: ExperimentState
    access_logs: str
    prediction_logs: str
    clicks: str


def take_snapshot(
    out: Path | str,
    name: str,
    *,
    records_dir: Path | str,
    access_logs: Path | str,
    prediction_logs: Path | str,
    clicks: Path | str,
    settle_seconds: float,
) -> Snapshot:
    """Write what a look is about; its logs stay where they are.

    Args:
        access_logs, prediction_logs, clicks: folders, see :class:`Snapshot`.
        settle_seconds: seconds until every log has the rows of a request.

    Raises:
        ExperimentError: the experiment does not run, or a folder is missing.
    """
    lines = read_lines(Path(records_dir) / name / RECORD)
    if not lines:
        raise ExperimentError(f"no record of the experiment {name!r} in {records_dir}: start it first")
    state = state_of(lines)
    if not state.runs:
        raise ExperimentError(f"{name} does not run: `thinktwice experiment status {name}` says why")
    folders = {"access": Path(access_logs), "prediction": Path(prediction_logs), "click": Path(clicks)}
    for what, source in folders.items():
        if not source.is_dir():
            raise ExperimentError(f"{source} is not a folder: name the folder of the {what} logs")
    access, predictions, clicked = (str(source.resolve()) for source in folders.values())
    snapshot = Snapshot(
        at=datetime.now(timezone.utc) - timedelta(seconds=settle_seconds), state=state,
        access_logs=access, prediction_logs=predictions, clicks=clicked,
    )  # fmt: skip
    with atomic_dir(out) as folder:
        write_json(folder / SNAPSHOT, snapshot.model_dump(mode="json"))
    return snapshot


def join_snapshot(logs: Path | str, out: Path | str, records_dir: Path | str, window: Window) -> Joined:
    """Join what is new in the logs of a snapshot, and write all sums by user, latencies and counts to ``out``.

    Args:
        records_dir: folder of the records; what the next look needs is kept beside the record of the experiment.

    Raises:
        ExperimentError: a log is missing or damaged, or another look is in progress.
    """
    snapshot = read_snapshot(logs)
    file, place = snapshot.state.file, Path(records_dir) / snapshot.state.file.name
    predictions, clicks = (_tables(Path(folder)) for folder in (snapshot.prediction_logs, snapshot.clicks))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    copy = out.with_name(f".{out.name}.access.part")
    with frozen_access_logs(Path(snapshot.access_logs), copy) as access, shared_engine(out.parent):
        sources = Sources(Logs(access, predictions, raw_unit_column(predictions, file.unit)), clicks)
        look = join_look(file, sources, place / LOOK, at=snapshot.at, window=window)
        started = snapshot.state.started or snapshot.at
        before = sums_before(
            file, sources.logs, clicks, place / LOOK / BEFORE, started=started, at=snapshot.at, window=window
        )
        remember_exposed(look.requests, place / EXPOSED, file.name)
        with atomic_dir(out) as folder:
            for number, part in enumerate(look.folders):
                (folder / str(number)).mkdir()
                for table in (UNITS, LATENCY):
                    shutil.copyfile(part / table, folder / str(number) / table)
            (folder / BEFORE).mkdir()
            for path in before:
                shutil.copyfile(path, folder / BEFORE / path.name)
            write_json(folder / JOINED, look.joined.model_dump(mode="json"))
    return look.joined


def evidence_of_snapshot(logs: Path | str, joined: Path | str) -> Evidence:
    """The evidence of a joined snapshot."""
    snapshot = read_snapshot(logs)
    state = snapshot.state
    if state.started is None or state.coverage_since is None:
        raise ExperimentError(f"{state.file.name} was not started: start it with `thinktwice experiment start`")
    since = min(state.coverage_since, snapshot.at)
    return evidence_of(
        state.file,
        Joined.model_validate(read_json(Path(joined) / JOINED)),
        sorted(path for path in Path(joined).iterdir() if path.is_dir() and path.name != BEFORE),
        started=min(state.started, since),
        coverage_since=since,
        at=snapshot.at,
        before=sorted((Path(joined) / BEFORE).iterdir()),
    )


def decide_on(logs: Path | str, evidence: Path | str, records_dir: Path | str) -> DecisionRecord:
    """Append the decision on the evidence of a snapshot. Doing it again returns the line that is there."""
    snapshot = read_snapshot(logs)
    try:
        collected = Evidence.model_validate_json(Path(evidence).read_bytes())
    except (OSError, ValidationError) as error:
        raise ExperimentError(
            f"{evidence} is not an evidence file ({reason(error)}): collect the evidence again"
        ) from error
    path = Path(records_dir) / snapshot.state.file.name / RECORD
    for line in reversed(read_lines(path)):
        if isinstance(line, DecisionRecord) and line.evidence == collected:
            return line
    return append_decision(path, snapshot.state.file, collected)


def read_snapshot(logs: Path | str) -> Snapshot:
    """``snapshot.json`` of a folder.

    Raises:
        ExperimentError: it is missing or damaged.
    """
    try:
        return Snapshot.model_validate(read_json(Path(logs) / SNAPSHOT))
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"{logs} is not a snapshot of logs ({reason(error)}): run the step collect again"
        ) from error


def _tables(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.glob("**/*.parquet") if path.is_file())
