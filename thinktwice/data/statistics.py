# ruff: noqa: S608 - names in queries come from the schema (letters, digits, _) and are quoted
"""Trailing impression counts and smoothed click rates of users and items, closed at midnight.

A window of ``w`` days that is valid from midnight (UTC) of day ``D`` counts the days ``D - w`` to ``D - 1``; ``w = 0``
counts every day before ``D``. It contains no impression of day ``D``, so a statistic always closes strictly before the
impressions that see it. A row is written whenever a day enters or leaves one of the windows of its entity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import duckdb

from thinktwice.query import quoted, source, written
from thinktwice.schema import EVENT_TIME, LABEL, LogSchema

DAY_US = 86_400_000_000
#: Weight, in impressions, of the click rate of all earlier days in every smoothed rate.
PRIOR_VIEWS = 20.0


def write_statistics(
    connection: duckdb.DuckDBPyConnection,
    clean: Path,
    schema: LogSchema,
    entity: Literal["user", "item"],
    end_us: int,
    target: Path,
) -> None:
    """Write the change points of one entity's statistics to ``target``, sorted by time and key.

    Columns: the key, ``event_timestamp`` and ``created_timestamp`` (midnight UTC), then ``schema.statistic_names``:
    ``log2(1 + impressions)`` and ``(clicks + 20 * prior) / (impressions + 20)`` per window, where ``prior`` is the
    click rate of the whole log over all days before. Change points after ``end_us`` are left out: they would describe days
    after the log.
    """
    key = schema.key_of(entity)
    assert schema.statistics is not None and key is not None
    windows = schema.statistics.windows_days
    names = schema.statistic_names(entity)
    deltas = ["SELECT key, day + 1 AS day, " + _delta(windows, None, "+") + " FROM daily"]
    deltas += [
        f"SELECT key, day + {w} + 1 AS day, " + _delta(windows, number, "-") + " FROM daily"
        for number, w in enumerate(windows)
        if w
    ]
    summed = ", ".join(f"sum(v{n}) AS v{n}, sum(c{n}) AS c{n}" for n in range(len(windows)))
    running = ", ".join(
        f"CAST(sum(v{n}) OVER w AS DOUBLE) AS v{n}, CAST(sum(c{n}) OVER w AS DOUBLE) AS c{n}"
        for n in range(len(windows))
    )
    values = ", ".join(
        f'log2(1 + v{n}) AS "{names[2 * n]}", '
        f'(c{n} + {PRIOR_VIEWS} * rate) / (v{n} + {PRIOR_VIEWS}) AS "{names[2 * n + 1]}"'
        for n in range(len(windows))
    )
    connection.execute(f"""
        COPY (
            WITH daily AS (
                SELECT {quoted(key)} AS key, CAST(floor(epoch_us({EVENT_TIME}) / {DAY_US}) AS BIGINT) AS day,
                       count(*) AS views, sum(CAST({LABEL} AS BIGINT)) AS clicks
                FROM {source(clean)} GROUP BY ALL
            ),
            -- The click rate of all days before `day`; it changes on the day after every day with impressions.
            prior AS (
                SELECT day + 1 AS day, sum(clicks) OVER (ORDER BY day) / CAST(sum(views) OVER (ORDER BY day) AS DOUBLE) AS rate
                FROM (SELECT day, sum(views) AS views, sum(clicks) AS clicks FROM daily GROUP BY day)
            ),
            delta AS ({" UNION ALL ".join(deltas)}),
            change AS (
                SELECT key, day, {summed} FROM delta
                WHERE key IS NOT NULL AND day * {DAY_US} <= {end_us} GROUP BY key, day
            ),
            running AS (
                SELECT key, day, {running} FROM change
                WINDOW w AS (PARTITION BY key ORDER BY day ROWS UNBOUNDED PRECEDING)
            )
            SELECT key AS {quoted(key)}, CAST(make_timestamp(r.day * {DAY_US}) AS TIMESTAMPTZ) AS event_timestamp,
                   CAST(make_timestamp(r.day * {DAY_US}) AS TIMESTAMPTZ) AS created_timestamp, {values}
            FROM running r ASOF JOIN prior p ON r.day >= p.day
            ORDER BY event_timestamp, key
        ) TO {written(target)} (FORMAT parquet, COMPRESSION zstd)
    """)


def _delta(windows: tuple[int, ...], leaving: int | None, sign: str) -> str:
    """Columns ``v0, c0, v1, c1, ...``: what a day adds to every window, or subtracts from a window it leaves."""
    return ", ".join(
        f"{sign}views AS v{n}, {sign}clicks AS c{n}" if leaving in (None, n) else f"0 AS v{n}, 0 AS c{n}"
        for n in range(len(windows))
    )
