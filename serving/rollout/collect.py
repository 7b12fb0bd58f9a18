"""Evidence of an experiment from the logs of the local roll-out and the events of the feedback service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa

from serving.feedback.event_log import START, Position, read, segment_file
from serving.feedback.records import Record
from serving.gateway.admin import running_admin
from serving.gateway.collect import prediction_parts
from serving.rollout.servers import GATEWAY, SERVED
from thinktwice.errors import DataError, ExperimentError, ServerError
from thinktwice.experiment.access_logs import frozen_access_logs
from thinktwice.experiment.before import sums_before
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.exposed import remember_exposed
from thinktwice.experiment.file import CONTROL, ExperimentFile
from thinktwice.experiment.gather import Sources, evidence_of
from thinktwice.experiment.join import Logs, raw_unit_column
from thinktwice.experiment.looks import join_look
from thinktwice.experiment.outcomes import Window
from thinktwice.experiment.query import shared_engine
from thinktwice.experiment.record import ExperimentState
from thinktwice.experiment.routes import checked_cluster, cluster_of
from thinktwice.files import atomic_file
from thinktwice.parquet import write_table
from thinktwice.records.events import CLICK_COLUMNS
from thinktwice.release.archive import BUNDLE
from thinktwice.release.rollout_local import read_arms
from thinktwice.schema import SCHEMA_FILE, load_schema

BEFORE_START = 120.0  # seconds by which routes may be live before the start is recorded


def collect(
    state: ExperimentState,
    folder: Path,
    clicks: Sequence[Path],
    out: Path,
    *,
    at: datetime,
    window: Window,
    exposed: Path,
    warm_replicas: Mapping[str, int] | None = None,
) -> Evidence:
    """Join the logs of a running experiment up to ``at``.

    Args:
        folder: of the local roll-out.
        clicks: tables of clicks, see :func:`write_clicks`.
        out: folder of the looks at this experiment: a look reads what is new since the last one and what is not final yet.
        at: time up to which all logs are complete.
        exposed: table of all users that were ever exposed, which is added to.
        warm_replicas: servers that answer, by arm; None: those that the gateway finds healthy.

    Raises:
        ExperimentError: the experiment does not run, or a log is missing or damaged. DataError: the event log is damaged.
    """
    if state.started is None or state.coverage_since is None:
        raise ExperimentError(f"{state.file.name} was not started: start it with `thinktwice experiment start`")
    # A part that was finished well before the start has no row of this experiment. The routes were live a little earlier than
    # the start was recorded: the gateway asks every arm, and servers that are no longer needed end first.
    begun = state.started - timedelta(seconds=BEFORE_START)
    parts = [part for log in sorted((folder / SERVED).iterdir()) for part in prediction_parts(log)]
    predictions = [part for part in parts if part.stat().st_mtime >= begun.timestamp()]
    failures, warm = None, warm_replicas
    with suppress(ServerError, OSError):
        stats = running_admin(folder / GATEWAY).stats()
        failures = stats.get("filesystem.write_failed", 0)
        warm = replicas_of(state.file, stats) if warm is None else warm
    since = min(state.coverage_since, at)
    out.mkdir(parents=True, exist_ok=True)
    started = min(state.started, since)
    with frozen_access_logs(folder / GATEWAY, out / ".access.part") as access, shared_engine(out):
        logs = Logs(access, predictions, raw_unit_column(predictions, state.file.unit, _user_key(folder)))
        look = join_look(state.file, Sources(logs, clicks, rows_since=begun), out, at=at, window=window)
        days = state.file.pre_period.days if state.file.pre_period else 0
        earliest = (begun - timedelta(days=days)).timestamp()
        past = Logs(access, [part for part in parts if part.stat().st_mtime >= earliest])
        before = sums_before(state.file, past, clicks, out / "before", started=state.started, at=at, window=window)
        evidence = evidence_of(
            state.file, look.joined, look.folders, started=started, coverage_since=since, at=at, before=before,
            warm_replicas=warm, log_write_failures=failures,
        )  # fmt: skip
        remember_exposed(look.requests, exposed, state.file.name)
    return evidence


def replicas_of(file: ExperimentFile, stats: Mapping[str, int]) -> dict[str, int] | None:
    """Healthy servers of every arm, from the counters of the gateway; None if it does not check them all."""
    clusters = {arm.name: checked_cluster(cluster_of(file.name, arm.name)) for arm in file.arms}
    healthy = {arm: stats.get(f"cluster.{name}.membership_healthy") for arm, name in clusters.items()}
    known = {arm: number for arm, number in healthy.items() if number is not None}
    return known if len(known) == len(healthy) else None


def _user_key(folder: Path) -> str:
    """Name of the user's id in the schema of control's model."""
    control = next((arm for arm in read_arms(folder).arms if arm.name == CONTROL), None)
    schema = None if control is None else Path(control.where) / BUNDLE / SCHEMA_FILE
    if schema is None or not schema.is_file():  # nothing is served here now
        return "user_id"
    return load_schema(schema).key_of("user") or "user_id"


def write_clicks(events: Path, folder: Path) -> list[Path]:
    """Write the clicks of an event log that are new since the last call into one more table of a folder. Returns all tables.

    Raises:
        DataError: the event log is damaged, or is not the one that the tables were made from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ends = [_end(path) for path in folder.glob("clicks-*.parquet")]
    begin = max(ends, default=START)
    if begin != START and _size(events, begin.segment) < begin.offset:
        raise DataError(
            f"the event log {events} is shorter than it was at the last look: restore it, or remove {folder}"
        )
    end, tables = begin, []
    while True:
        records, position = read(events, end)
        if not records:
            break
        end = position
        tables += list(_clicks(records))
    if end != begin:
        table = pa.concat_tables(tables) if tables else CLICK_COLUMNS.empty_table()
        with atomic_file(folder / f"clicks-{end.segment:010d}-{end.offset:012d}.parquet") as temporary:
            write_table(table, temporary)
    return sorted(folder.glob("clicks-*.parquet"))


def _end(path: Path) -> Position:
    """Position after the events of a table, from its name."""
    _, segment, offset = path.stem.split("-")
    return Position(int(segment), int(offset))


def _size(events: Path, segment: int) -> int:
    path = segment_file(events, segment)
    return path.stat().st_size if path.is_file() else 0


def _clicks(records: Sequence[Record]) -> Iterator[pa.Table]:
    clicks = [record for record in records if record.kind == "click"]
    if clicks:
        content = {
            "request_id": [r.request_id for r in clicks],
            "item_id": [r.item_id for r in clicks],
            "at": [r.time for r in clicks],
            "received_at": [r.at for r in clicks],
        }
        yield pa.table(content, schema=CLICK_COLUMNS)


def now() -> datetime:
    return datetime.now(timezone.utc)
