"""A snapshot of the logs of a running experiment, and the steps of a look that read it."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from thinktwice.errors import ExperimentError, reason
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.gather import Joined, Sources, evidence_of, join_logs
from thinktwice.experiment.join import Logs, raw_unit_column
from thinktwice.experiment.outcomes import Window
from thinktwice.experiment.record import RECORD, DecisionRecord, ExperimentState, append_decision, read_lines, state_of
from thinktwice.files import atomic_dir, read_json, write_json
from thinktwice.frozen import Frozen

SNAPSHOT, JOINED = "snapshot.json", "joined.json"
ACCESS, PREDICTIONS, CLICKS = "access", "predictions", "clicks"


class Snapshot(Frozen):
    """Content of ``snapshot.json``: the state of the experiment when the logs were copied, complete up to ``at``."""

    format: int = 1
    at: AwareDatetime
    state: ExperimentState


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
    """Copy the logs of an experiment.

    Args:
        access_logs: folder with ``access*.log``.
        prediction_logs, clicks: folders of parquet files, with any subfolders.
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
    at = datetime.now(timezone.utc) - timedelta(seconds=settle_seconds)
    copied = (
        (Path(access_logs), ACCESS, "access*.log"),
        (Path(prediction_logs), PREDICTIONS, "**/*.parquet"),
        (Path(clicks), CLICKS, "**/*.parquet"),
    )
    with atomic_dir(out) as folder:
        for source, target, pattern in copied:
            if not source.is_dir():
                raise ExperimentError(f"{source} is not a folder: name the folder of the {target} logs")
            (folder / target).mkdir()
            for number, path in enumerate(sorted(p for p in source.glob(pattern) if p.is_file())):
                shutil.copyfile(path, folder / target / f"{number:06d}-{path.name}")
        snapshot = Snapshot(at=at, state=state)
        write_json(folder / SNAPSHOT, snapshot.model_dump(mode="json"))
    return snapshot


def join_snapshot(logs: Path | str, out: Path | str, window: Window) -> Joined:
    """Join the logs of a snapshot. The counts are written too."""
    snapshot = read_snapshot(logs)
    with atomic_dir(out) as folder:
        file = snapshot.state.file
        joined = join_logs(file, _sources(Path(logs), file.unit), folder, at=snapshot.at, window=window)
        write_json(folder / JOINED, joined.model_dump(mode="json"))
    return joined


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
        Path(joined),
        started=min(state.started, since),
        coverage_since=since,
        at=snapshot.at,
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


def _sources(logs: Path, unit: str) -> Sources:
    access, predictions, clicks = (sorted((logs / name).iterdir()) for name in (ACCESS, PREDICTIONS, CLICKS))
    return Sources(Logs(access, predictions, raw_unit_column(predictions, unit)), clicks)
