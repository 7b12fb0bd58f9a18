"""The outcome join: exposures with their clicks within a window, up to a watermark.

An exposure is *final* when its window, and the time for clicks to arrive, end before the watermark (the time up to which
clicks are complete). Only final ones are written; the others are counted and written by a later run. Clicks that arrive after
that are late, so a label never changes. A click belongs to the exposure with its request id and item; if a request shows an
item twice, to the first position.
"""

# ruff: noqa: S608 - names are of our own lists, values are escaped by `literal`

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import duckdb
from pydantic import Field

from thinktwice.errors import ExperimentError
from thinktwice.experiment.query import engine, one_row, parquet_table, write_parquet
from thinktwice.frozen import Frozen
from thinktwice.query import literal
from thinktwice.records.events import CLICK_COLUMNS
from thinktwice.records.served import AT, CLICKED_AT, ITEM, LABEL, PLACE, PREDICTION_COLUMNS, REQUEST

OUTCOMES = "outcomes.parquet"


class Window(Frozen):
    """The window within which clicks count.

    Attributes:
        seconds: length of the window after the exposure.
        early_seconds: seconds by which a click may precede its exposure, because clocks differ.
        late_seconds: seconds after the window within which a click must have arrived (``received_at``, if it is known).
    """

    seconds: float = Field(default=86_400.0, gt=0)
    early_seconds: float = Field(default=5.0, ge=0)
    late_seconds: float = Field(default=0.0, ge=0)


class OutcomeCounts(Frozen):
    """Counts of all exposures and clicks by outcome of the join.

    ``exposures = final + open``;
    ``clicks = matched + duplicate + late + before_exposure + unmatched + older + pending + broken``.
    """

    exposures: int
    final: int  # written
    open: int  # their window reaches beyond the watermark
    clicks: int
    matched: int
    duplicate: int  # further clicks on an exposure within its window
    late: int  # after the window, or arrived after it
    before_exposure: int
    unmatched: int  # no such exposure
    older: int = 0  # no such exposure, and before the first one: clicks of other times, as of an imported training log
    pending: int  # on an exposure that is still open, or may not be collected yet
    broken: int  # without request, item or time


def join_outcomes(
    exposures: Sequence[Path],
    clicks: Sequence[Path],
    out: Path,
    watermark: datetime,
    window: Window | None = None,
    memory: str = "2GB",
    collected: datetime | None = None,
    first: datetime | None = None,
) -> OutcomeCounts:
    """Write ``outcomes.parquet``: every final exposure with ``label`` and the time of its first click.

    Args:
        watermark: time up to which clicks are complete.
        collected: time up to which exposures are complete; None: all are there. An unmatched click after it may belong to a
            later one.
        first: time of an exposure that is not among these; clicks before the first exposure are of other times.

    Raises:
        ExperimentError: a file is damaged or lacks a column, or a clicked exposure occurs twice.
        ValueError: the watermark has no time zone.
    """
    if watermark.tzinfo is None or (collected is not None and collected.tzinfo is None):
        raise ValueError("the watermark needs a time zone")
    window = window or Window()
    out.mkdir(parents=True, exist_ok=True)
    needed = PREDICTION_COLUMNS.empty_table().select([REQUEST, ITEM, PLACE, AT]).schema
    shown = parquet_table(exposures, needed, "exposures")
    clicked = parquet_table(clicks, CLICK_COLUMNS, "clicks")
    with engine(out, memory) as db:
        _match(db, shown, clicked, watermark, window, collected, first)
        end = f"TIMESTAMPTZ {literal(watermark.isoformat())}"
        final = f"e.{AT} + to_microseconds({_micros(window.seconds + window.late_seconds)}) <= {end}"
        write_parquet(
            db,
            f"""SELECT e.*, CAST(c.request_id IS NOT NULL AS TINYINT) AS {LABEL}, c.clicked_at AS {CLICKED_AT}
                FROM {shown} e LEFT JOIN firsts c ON c.request_id = e.{REQUEST} AND c.item_id = e.{ITEM} AND c.place = e.{PLACE}
                WHERE {final}""",
            out / OUTCOMES,
        )
        counts = one_row(db, f"SELECT count(*) AS exposures, count(*) FILTER ({final}) AS final FROM {shown} e")
        parts = ", ".join(f"count(*) FILTER (fate = '{fate}') AS {fate}" for fate in _FATES)
        fates = one_row(db, f"SELECT count(*) AS clicks, {parts} FROM fates")
        shown_rows, final_rows = int(counts["exposures"] or 0), int(counts["final"] or 0)
        return OutcomeCounts(
            exposures=shown_rows,
            final=final_rows,
            open=shown_rows - final_rows,
            **{name: int(value or 0) for name, value in fates.items()},
        )


_FATES = ("matched", "duplicate", "late", "before_exposure", "unmatched", "older", "pending", "broken")


def _match(
    db: duckdb.DuckDBPyConnection,
    shown: str,
    clicked: str,
    watermark: datetime,
    window: Window,
    collected: datetime | None,
    first: datetime | None,
) -> None:
    """Classify each click. Clicks are few and exposures many, so the clicks are the side in memory."""
    reach, arrival = _micros(window.seconds), _micros(window.seconds + window.late_seconds)
    early = _micros(window.early_seconds)
    later = "infinity" if collected is None else collected.isoformat()
    earlier = "NULL" if first is None else f"TIMESTAMPTZ {literal(first.isoformat())}"
    db.execute(f"""
        CREATE TABLE fates AS
        WITH c AS (
            SELECT row_number() OVER (ORDER BY request_id, item_id, "at", received_at) AS n, request_id, item_id,
                "at" AS clicked_at, received_at FROM {clicked}),
        first AS (SELECT least(min({AT}), {earlier}) - to_microseconds({early}) AS shown_at FROM {shown}),
        good AS (SELECT * FROM c WHERE request_id IS NOT NULL AND item_id IS NOT NULL AND clicked_at IS NOT NULL),
        e AS (SELECT {REQUEST} AS request_id, {ITEM} AS item_id, min({PLACE}) AS place, min({AT}) AS shown_at,
                  count(*) > count(DISTINCT {PLACE}) AS doubled
              FROM {shown} WHERE {REQUEST} IN (SELECT request_id FROM good) GROUP BY 1, 2),
        judged AS (
            SELECT c.n, c.request_id, c.item_id, c.clicked_at, e.place, coalesce(e.doubled, false) AS doubled,
                CASE WHEN c.request_id IS NULL OR c.item_id IS NULL OR c.clicked_at IS NULL THEN 'broken'
                     WHEN e.request_id IS NULL AND c.clicked_at < (SELECT shown_at FROM first) THEN 'older'
                     WHEN e.request_id IS NULL AND c.clicked_at > TIMESTAMPTZ {literal(later)} - to_microseconds({early})
                        THEN 'pending'
                     WHEN e.request_id IS NULL THEN 'unmatched'
                     WHEN c.clicked_at < e.shown_at - to_microseconds({early}) THEN 'before_exposure'
                     WHEN c.clicked_at > e.shown_at + to_microseconds({reach})
                        OR c.received_at > e.shown_at + to_microseconds({arrival}) THEN 'late'
                     WHEN e.shown_at + to_microseconds({arrival})
                        > TIMESTAMPTZ {literal(watermark.isoformat())} THEN 'pending'
                     ELSE 'matched' END AS fate
            FROM c LEFT JOIN e ON e.request_id = c.request_id AND e.item_id = c.item_id)
        SELECT request_id, item_id, clicked_at, place, doubled,
            CASE WHEN fate = 'matched' AND row_number() OVER (PARTITION BY fate, request_id, item_id ORDER BY clicked_at, n) > 1
                 THEN 'duplicate' ELSE fate END AS fate
        FROM judged
    """)
    doubled = db.execute("SELECT request_id, place FROM fates WHERE doubled LIMIT 1").fetchall()
    if doubled:
        request, position = doubled[0]
        raise ExperimentError(
            f"the exposures contain place {position} of the request {request!r} twice: give each file once"
        )
    db.execute("CREATE TABLE firsts AS SELECT request_id, item_id, place, clicked_at FROM fates WHERE fate = 'matched'")


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
