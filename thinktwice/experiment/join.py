"""The exposure join: answers of the gateway (access log) with predictions of the servers (prediction log).

The key is request id and serving arm. A request may be computed more than once: by a slow server and, after its timeout, by
control, or by a shadow. The row of the answer that reached the caller is kept; all others are counted by reason.
Analysis is by the *assigned* arm, not by the serving one.
"""

# ruff: noqa: S608 - names are of our own lists, values are escaped by `literal`

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import duckdb
import pyarrow as pa

from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import HOLDOUT, NO_EXPERIMENT, BucketLayout, buckets_of
from thinktwice.experiment.join_counts import ArmCounts, JoinCounts
from thinktwice.experiment.query import engine, is_text, one_row, parquet_table, write_parquet
from thinktwice.parquet import num_rows, read_schema
from thinktwice.query import listed, literal, quoted, source
from thinktwice.records.exposure import ASSIGNED, BUCKET, ENROLLED, EXPERIMENT, SHADOW, UNIT
from thinktwice.records.served import (
    ACCESS_COLUMNS,
    ARM,
    AT,
    BUNDLE,
    FALLBACK,
    MS,
    PLACE,
    PREDICTION_COLUMNS,
    REQUEST,
    USER,
    USER_IDS,
    VERSION,
)

EXPOSURES, REQUESTS = "exposures.parquet", "requests.parquet"
SKEW = 60.0  # seconds; a smaller difference between the clocks of gateway and server is not counted


@dataclass(frozen=True)
class Logs:
    """Input of the join: access logs, parts of prediction logs, and the column of the raw unit if there is one.

    Attributes:
        lines: further lines of access logs, as :func:`write_lines` has parsed them.
        only: table of the only requests whose predictions are read; None: all are.
    """

    access: Sequence[Path]
    predictions: Sequence[Path]
    unit_column: str | None = None  # of :func:`raw_unit_column`: buckets are recomputed from it
    lines: Sequence[Path] = ()
    only: Path | None = None


def raw_unit_column(predictions: Sequence[Path], unit: str, user_key: str = "user_id") -> str | None:
    """The column of prediction logs with the raw unit of an experiment, from which buckets can be recomputed.

    Args:
        unit: as the experiment file names it.
        user_key: name of the user's id in the schema of the model; its column is ``log_user_id``.

    Returns:
        None if no log has it as text, or the logs hide user ids.
    """
    named_user = unit in (user_key, "user_id")
    column = USER if named_user else unit
    found = [_unit_of(part, column, part.stat().st_size, part.stat().st_mtime_ns) for part in predictions]
    if named_user and any(hidden for hidden, _ in found):
        return None
    kinds = [text for _, text in found if text is not None]
    return column if kinds and all(kinds) else None


@lru_cache(maxsize=1 << 16)
def _unit_of(part: Path, column: str, size: int, changed: int) -> tuple[bool, bool | None]:
    """Whether a part hides user ids, and whether a column of it is text (None: it has no such column). A part never changes, so
    it is opened once, by its size and time."""
    schema = read_schema(part)
    hidden = (schema.metadata or {}).get(USER_IDS, b"raw") != b"raw"
    return hidden, is_text(schema.field(column).type) if column in schema.names else None


def join_exposures(
    logs: Logs, layout: BucketLayout, out: Path, memory: str = "2GB", watermark: datetime | None = None
) -> JoinCounts:
    """Write ``exposures.parquet`` (rows of the prediction log whose answer was delivered, enrolled or not, with the fields
    of the gateway) and ``requests.parquet`` (enrolled requests, answered or not) into ``out``.

    Args:
        layout: the layout of buckets at its highest coverage. Rows of an experiment that is not in it are not compared with it.
        watermark: time up to which all logs are complete; later requests are left to a later run. None: all are complete.

    Raises:
        ExperimentError: a log is missing, damaged, or has no columns of experiments.
        ValueError: the watermark has no time zone.
    """
    if watermark is not None and watermark.tzinfo is None:
        raise ValueError("the watermark needs a time zone")
    for file in logs.access:
        if not file.is_file():
            raise ExperimentError(f"no access log {file}")
    out.mkdir(parents=True, exist_ok=True)
    predictions = parquet_table(logs.predictions, PREDICTION_COLUMNS, "prediction log")
    if logs.only is not None:
        predictions = f"(SELECT * FROM {predictions} WHERE {REQUEST} IN (SELECT {REQUEST} FROM {source(logs.only)}))"
    with engine(out, memory) as db:
        _load_access(db, logs)
        _load_groups(db, predictions)
        _resolve(db, "Infinity" if watermark is None else repr(watermark.timestamp()))
        _write(db, predictions, out)
        _load_layout(db, layout)
        counts = _counts(db)
        torn = sum(_is_torn(file) for file in logs.access)
        return JoinCounts(
            **{name: number - torn if name == "broken" else number for name, number in counts.items()},
            torn=torn,
            wrong_bucket=len(_wrong_buckets(db, layout.salt, predictions, logs.unit_column)),
            exposures=num_rows(out / EXPOSURES),
            arms=_arms(db),
        )


LINE_COLUMNS = pa.schema(
    [(f.name, pa.bool_() if f.name == "enrolled" else f.type) for f in ACCESS_COLUMNS if f.name != "ts"]
    + [("ts", pa.float64())]
)


def write_lines(files: Sequence[Path], target: Path, memory: str = "2GB") -> None:
    """Parse access logs into a table with :data:`LINE_COLUMNS`; a broken line has nulls alone."""
    names = ", ".join(quoted(name) for name in LINE_COLUMNS.names)
    with engine(target.parent, memory) as db:
        write_parquet(db, f"SELECT {names} FROM ({_parsed(files)})", target)


def wrong_buckets(logs: Logs, layout: BucketLayout, scratch: Path) -> set[tuple[str, int]]:
    """Distinct units of the layout's experiments with a logged bucket that differs from the recomputed one."""
    predictions = parquet_table(logs.predictions, PREDICTION_COLUMNS, "prediction log")
    with engine(scratch) as db:
        _load_layout(db, layout)
        return _wrong_buckets(db, layout.salt, predictions, logs.unit_column)


def _parsed(files: Sequence[Path]) -> str:
    """Query of every line, parsed if possible. Bytes are decoded as Latin-1, which accepts any; ids and arms are ASCII."""
    column_types = {"ts": "VARCHAR", **{n: "VARCHAR" for n in ACCESS_COLUMNS.names if n != "ts"}}
    shape = literal("{" + ", ".join(f'"{name}": "{kind}"' for name, kind in column_types.items()) + "}")
    nonempty = [f for f in files if f.stat().st_size]
    text = (
        f"SELECT line FROM read_csv({listed(*nonempty)}, hive_partitioning = false, columns = {{'line': 'VARCHAR'}}, delim = '\x01', quote = '', escape = '', "
        "header = false, auto_detect = false, null_padding = true, encoding = 'latin-1', max_line_size = 16777216, buffer_size = 33554432)"
        if nonempty
        else "SELECT CAST(NULL AS VARCHAR) AS line WHERE false"
    )
    return f"""
        SELECT nullif(r.request_id, '') AS request_id, try_cast(r.ts AS DOUBLE) AS ts, r.experiment, r.assigned,
            r.enrolled = '1' AS enrolled, nullif(r.served, '') AS served, try_cast(r.code AS INTEGER) AS code,
            try_cast(r.attempts AS INTEGER) AS attempts, try_cast(r.ms AS DOUBLE) AS ms
        FROM (SELECT CASE WHEN json_valid(line) AND json_type(line) = 'OBJECT' THEN json_transform(line, {shape}) END AS r
              FROM ({text}) WHERE line IS NOT NULL AND line <> '')
    """


def _load_access(db: duckdb.DuckDBPyConnection, logs: Logs) -> None:
    names = ", ".join(quoted(name) for name in LINE_COLUMNS.names)
    db.execute(f"CREATE TABLE lines AS SELECT {names} FROM ({_parsed(logs.access)})")
    if logs.lines:
        db.execute(f"INSERT INTO lines SELECT {names} FROM {parquet_table(logs.lines, LINE_COLUMNS, 'lines')}")
    # The first line of a request counts: a repeated id is not a second exposure.
    db.execute("""
        CREATE TABLE firsts AS
        SELECT * EXCLUDE (place) FROM (
            SELECT *, row_number() OVER (PARTITION BY request_id ORDER BY ts NULLS LAST, code, served, experiment, assigned,
                enrolled, attempts, ms) AS place
            FROM lines WHERE request_id IS NOT NULL)
        WHERE place = 1
    """)


def _load_groups(db: duckdb.DuckDBPyConnection, predictions: str) -> None:
    """One row per request and server: the rows of its candidates differ only in the item."""
    db.execute(f"""
        CREATE TABLE groups AS
        SELECT {REQUEST} AS request_id, {ARM} AS served, coalesce({SHADOW}, false) AS shadow,
            min({UNIT}) AS unit, max({UNIT}) AS other_unit, bool_or({UNIT} IS NULL) AND bool_or({UNIT} IS NOT NULL) AS mixed,
            min({AT}) AS served_at, min({BUCKET}) AS bucket, min({EXPERIMENT}) AS experiment, min({ASSIGNED}) AS assigned,
            count(*) > count(DISTINCT coalesce({PLACE}, -1)) AS doubled,
            min(coalesce({VERSION}, '') || ' ' || coalesce({BUNDLE}, '')) AS version
        FROM {predictions} WHERE {REQUEST} IS NOT NULL GROUP BY ALL
    """)


def _resolve(db: duckdb.DuckDBPyConnection, watermark: str) -> None:
    """Classify each group."""
    db.execute(f"CREATE VIEW access AS SELECT * FROM firsts WHERE coalesce(ts, 0) <= CAST('{watermark}' AS DOUBLE)")
    db.execute("""
        CREATE TABLE ambiguous AS
        SELECT request_id FROM groups WHERE NOT shadow GROUP BY request_id
        HAVING min(unit) <> max(other_unit) OR bool_or(mixed) OR (bool_or(unit IS NULL) AND bool_or(unit IS NOT NULL))
    """)
    db.execute(f"""
        CREATE TABLE fates AS
        SELECT g.*, a.ts, a.ms, a.code, a.experiment AS gateway_experiment, a.assigned AS gateway_arm, a.enrolled,
            CASE WHEN g.shadow THEN 'shadow'
                 WHEN coalesce(a.ts, CASE WHEN a.request_id IS NULL THEN epoch(g.served_at) END, 0)
                    > CAST('{watermark}' AS DOUBLE) THEN 'open'
                 WHEN g.request_id IN (SELECT request_id FROM ambiguous) THEN 'ambiguous'
                 WHEN a.request_id IS NULL AND g.experiment IS NULL AND g.assigned IS NULL THEN 'direct'
                 WHEN a.request_id IS NULL THEN 'unexplained'
                 WHEN a.served = g.served AND a.code BETWEEN 200 AND 299 THEN 'joined'
                 ELSE 'superseded' END AS fate
        FROM groups g LEFT JOIN firsts a ON a.request_id = g.request_id
    """)
    db.execute("""
        CREATE TABLE requests AS
        SELECT a.request_id, make_timestamptz(CAST(round(a.ts * 1e6) AS BIGINT)) AS at, a.experiment, a.assigned AS arm,
            a.served, g.unit, a.code, a.ms, a.attempts, coalesce(f.joined, false) AS joined,
            coalesce(a.code BETWEEN 200 AND 299, false) AS answered, f.version, coalesce(f.own, false) AS own
        FROM access a
        LEFT JOIN (SELECT request_id, min(unit) AS unit FROM groups WHERE NOT shadow GROUP BY request_id) g USING (request_id)
        LEFT JOIN (SELECT request_id, true AS joined, min(version) AS version,
                       bool_or(served = assigned) AS own
                   FROM fates WHERE fate = 'joined' GROUP BY request_id) f USING (request_id)
        WHERE a.enrolled AND a.request_id NOT IN (SELECT request_id FROM ambiguous)
    """)


def _write(db: duckdb.DuckDBPyConnection, predictions: str, out: Path) -> None:
    replaced = ", ".join(quoted(n) for n in (EXPERIMENT, ASSIGNED, ENROLLED))
    matched = f"""SELECT p.* EXCLUDE ({replaced}, {SHADOW}), f.gateway_experiment AS {EXPERIMENT}, f.gateway_arm AS {ASSIGNED},
            f.enrolled AS {ENROLLED}, f.ms AS {MS}, f.served <> f.gateway_arm AS {FALLBACK}
        FROM {predictions} p JOIN fates f ON f.request_id = p.{REQUEST} AND f.served = p.{ARM} AND f.fate = 'joined'
        WHERE NOT coalesce(p.{SHADOW}, false)"""
    # If a client resends a request with the same id, or a part was copied, keep one row per position. Few groups are
    # affected, and only these are sorted.
    once = f"{matched} AND f.doubled QUALIFY row_number() OVER (PARTITION BY p.{REQUEST}, p.{PLACE} ORDER BY p.{AT}, p) = 1"
    write_parquet(db, f"{matched} AND NOT f.doubled UNION ALL {once}", out / EXPOSURES)
    write_parquet(
        db, 'SELECT request_id, "at", experiment, arm, served, unit, code, ms, attempts FROM requests', out / REQUESTS
    )


def _load_layout(db: duckdb.DuckDBPyConnection, layout: BucketLayout) -> None:
    ranges = pa.table(
        {
            "start": pa.array([r.start for r in layout.ranges], pa.int32()),
            "stop": pa.array([r.stop for r in layout.ranges], pa.int32()),
            "experiment": [r.experiment for r in layout.ranges],
            "arm": [r.arm for r in layout.ranges],
            "enrolled": [r.enrolled for r in layout.ranges],
        }
    )
    db.register("ranges", ranges)


_COUNTS = """
    WITH rowless AS (
        SELECT * FROM access a WHERE code BETWEEN 200 AND 299 AND served IS NOT NULL
            AND NOT EXISTS (FROM groups g WHERE g.request_id = a.request_id AND g.served = a.served AND NOT g.shadow))
    SELECT (SELECT count(*) FROM lines) AS lines, (SELECT count(*) FROM access) AS requests,
        (SELECT count(*) FROM firsts) - (SELECT count(*) FROM access) AS open,
        (SELECT count(*) FROM lines WHERE request_id IS NOT NULL) - (SELECT count(*) FROM firsts) AS repeated,
        (SELECT count(*) FROM access WHERE code IS NULL OR code NOT BETWEEN 200 AND 299) AS unanswered,
        (SELECT count(*) FROM access WHERE code BETWEEN 200 AND 299 AND served IS NULL) AS unnamed,
        (SELECT count(*) FROM rowless WHERE enrolled) AS lost,
        (SELECT count(*) FROM rowless WHERE NOT coalesce(enrolled, false)) AS unlogged,
        (SELECT count(*) FROM groups) AS predicted,
        (SELECT count(*) FROM fates WHERE fate = 'joined') AS joined,
        (SELECT count(*) FROM fates WHERE fate = 'superseded') AS superseded,
        (SELECT count(*) FROM fates WHERE fate = 'shadow') AS shadow,
        (SELECT count(*) FROM fates WHERE fate = 'direct') AS direct,
        (SELECT count(*) FROM fates WHERE fate = 'unexplained') AS unexplained,
        (SELECT count(*) FROM fates WHERE fate = 'ambiguous') AS ambiguous,
        (SELECT count(*) FROM fates WHERE fate = 'open') AS open_predicted,
        (SELECT count(*) FROM fates g JOIN access a ON a.request_id = g.request_id AND a.served = g.served
            WHERE g.fate = 'ambiguous' AND a.code BETWEEN 200 AND 299) AS ambiguous_requests,
        (SELECT count(*) FROM lines WHERE request_id IS NULL) AS broken,
        (SELECT count(*) FROM fates WHERE doubled AND fate = 'joined') AS doubled
"""

#: Enrolled at the highest coverage is a superset of enrolled at any, so an enrolled row must be in its arm's range; testers and
#: overrides are never enrolled and may be anywhere.
_WRONG_ARM = f"""
    SELECT count(*) AS n FROM fates f LEFT JOIN ranges r ON f.bucket >= r.start AND f.bucket < r.stop
    WHERE f.fate = 'joined' AND (
        f.experiment IS DISTINCT FROM f.gateway_experiment OR f.assigned IS DISTINCT FROM f.gateway_arm
        OR (f.enrolled AND f.gateway_experiment IN (SELECT experiment FROM ranges)
            AND (r.arm IS NULL OR NOT r.enrolled OR r.arm <> f.gateway_arm OR r.experiment <> f.gateway_experiment))
        OR (f.enrolled AND f.gateway_experiment IN ('{NO_EXPERIMENT}', '{HOLDOUT}')))
"""

_SKEWED = f"""
    SELECT count(*) AS n FROM fates
    WHERE fate = 'joined' AND (epoch(served_at) < ts - {SKEW} OR epoch(served_at) > ts + coalesce(ms, 0) / 1000 + {SKEW})
"""

_TWO_ARMS = """
    SELECT count(*) AS n FROM (
        SELECT experiment, unit FROM requests WHERE unit IS NOT NULL GROUP BY experiment, unit HAVING count(DISTINCT arm) > 1)
"""


def _counts(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    counts = {name: int(value or 0) for name, value in one_row(db, _COUNTS).items()}
    for name, query in (("wrong_arm", _WRONG_ARM), ("skewed", _SKEWED), ("units_in_two_arms", _TWO_ARMS)):
        counts[name] = int(one_row(db, query)["n"] or 0)
    return counts


def _arms(db: duckdb.DuckDBPyConnection) -> tuple[ArmCounts, ...]:
    rows = db.execute("""
        SELECT experiment, arm, count(*), count(*) FILTER (answered), count(*) FILTER (joined),
            count(*) FILTER (answered AND served IS NOT NULL AND NOT joined), count(*) FILTER (answered AND served <> arm),
            count(DISTINCT unit), list_sort(list(DISTINCT version) FILTER (own AND version IS NOT NULL))
        FROM requests GROUP BY experiment, arm ORDER BY experiment, arm
    """).fetchall()
    names = ("experiment", "arm", "requests", "answered", "joined", "lost", "fallbacks", "units")
    return tuple(ArmCounts(**dict(zip(names, row[:8], strict=True)), versions=tuple(row[8] or ())) for row in rows)


def _wrong_buckets(
    db: duckdb.DuckDBPyConnection, salt: str, predictions: str, column: str | None
) -> set[tuple[str, int]]:
    """Distinct units of the layout's experiments, with their logged bucket, if it differs from the recomputed one; none without
    raw units."""
    if column is None:
        return set()
    reader = db.sql(
        f"SELECT DISTINCT CAST({quoted(column)} AS VARCHAR) AS unit, {BUCKET} AS bucket FROM {predictions} "
        f"WHERE {quoted(column)} IS NOT NULL AND {BUCKET} IS NOT NULL AND {EXPERIMENT} IN (SELECT experiment FROM ranges)"
    ).to_arrow_reader(100_000)
    wrong: set[tuple[str, int]] = set()
    for batch in reader:
        differs = pa.array(buckets_of(salt, batch["unit"]) != batch["bucket"].to_numpy())
        found = batch.filter(differs)
        wrong.update(zip(found["unit"].to_pylist(), found["bucket"].to_pylist(), strict=True))
    return wrong


def _is_torn(file: Path) -> bool:
    """Whether the last line is truncated: it has no line end and is not a JSON object."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        handle.seek(max(0, size - (1 << 20)))
        tail = handle.read()
    if not tail or tail.endswith(b"\n"):
        return False
    try:
        json.loads(tail.rsplit(b"\n", 1)[-1].decode("latin-1"))
    except ValueError:
        return True
    return False
