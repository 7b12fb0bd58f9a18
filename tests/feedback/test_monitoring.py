"""Skew and drift: a replayed day differs in nothing from training, and outcomes that come late are shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.skew import measure_skew
from serving.feedback.book import Book
from serving.feedback.join import play
from serving.feedback.records import Record
from tests.data.instant.oracle import Row
from tests.feedback.stores import full_schema, make_store, random_log, write_clean
from tests.feedback.streams import SECOND, book_for, click, counters_at, impression, in_order, run, tick, values_of
from thinktwice.data.instant.definition import definition_of
from thinktwice.errors import DataError
from thinktwice.monitor.drift import DriftReport
from thinktwice.monitor.drift_page import verdict_lines
from thinktwice.monitor.feedback import STATE_FILE, feedback_assumption
from thinktwice.monitor.record import log_schema
from thinktwice.monitor.skew import SkewReport

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SCHEMA = full_schema()
LOG = random_log(150)
#: One impression of a user at an instant, as a request is.
DAY = [
    Row(LOG[-1].time + 7200 * SECOND + n * 61 * SECOND, n % 3 == 0, r.user or "u", r.item, r.topics, r.attributes)
    for n, r in enumerate(random_log(60, seed=5))
]


def sequences_and_statistics(book: Book, row: Row) -> dict[str, object]:
    """What the online store has of this user and item now."""
    import json

    out: dict[str, object] = {}
    for kind, key in (("user_statistics", row.user), ("item_statistics", row.item)):
        content = book.content(kind, key or "")  # type: ignore[arg-type]
        out |= json.loads(content) if content else {}
    content = book.content("user_sequences", row.user or "")
    for name, entries in (json.loads(content) if content else {}).items():
        out[name] = [value for _, value in entries]
    return out


def served_day(folder: Path, wrong: float = 0.0) -> Path:
    """The day as a server with feedback would have logged it: every request scored with what the store had at its instant."""
    book, rows = book_for(SCHEMA), list[dict[str, object]]()
    run(book, SCHEMA, [Record("start", 0), *in_order(LOG)])
    names = book.definition.names
    for number, row in enumerate(DAY):
        run(book, SCHEMA, [tick(row.time)])
        found: dict[str, object] = dict(zip(names, (counters_at(book, row) + wrong).tolist(), strict=True))
        found |= values_of(row) | sequences_and_statistics(book, row)
        found |= {"log_request_id": f"q{number}", "log_at": row.time, "log_user_id": row.user, "log_item_id": row.item}
        rows.append({**found, "user_id": row.user, "item_id": row.item, "log_model_version": "m"})
        run(book, SCHEMA, [impression(row, 1000 + number)])
        if row.clicked:
            run(book, SCHEMA, [click(row, 1000 + number)])
    schema = log_schema(SCHEMA)
    for name in names:
        schema = schema.append(pa.field(name, pa.float32()))
    folder.mkdir()
    arrays = [pa.array([row.get(name) for row in rows], schema.field(name).type) for name in schema.names]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), folder / "served-1.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("skew")
    make_store(made, LOG, SCHEMA)
    write_clean(made / "later", [*LOG, *DAY], SCHEMA)
    return made


def skew(folder: Path, served: Path) -> SkewReport:
    return measure_skew(served, folder / "store", clean_dir=folder / "later")


def test_a_replayed_day_has_no_skew(folder: Path, tmp_path: Path) -> None:
    """Counters, sequences and statistics of whole days alike."""
    report = skew(folder, served_day(tmp_path / "served"))
    found = definition_of(SCHEMA)
    assert found is not None
    by_name = {f.name: f for f in report.fields}
    assert set(found.names) <= set(by_name) and {"recent_items", "seen_genres", "user_views_7d"} <= set(by_name)
    assert {f.name: f.mismatches for f in report.fields if f.mismatches} == {}
    assert by_name["user_views"].rows == len(DAY) and sum(f.rows for f in report.fields) > 20 * len(DAY)


def test_counters_that_were_wrong_are_skewed(folder: Path, tmp_path: Path) -> None:
    report = skew(folder, served_day(tmp_path / "served", wrong=0.01))
    worst = {f.name for f in report.skewed(0.01)}
    assert "user_views" in worst and "item_rate" in worst and "recent_items" not in worst


def test_rows_that_are_no_impressions_of_the_log_are_not_compared(folder: Path, tmp_path: Path) -> None:
    served = served_day(tmp_path / "served")
    part = served / "served-1.parquet"
    table = pl.read_parquet(part)
    half = pl.Series(np.arange(table.height) % 2)
    moved = table.with_columns(pl.col("log_at") + pl.duration(microseconds=1) * half)
    pq.write_table(moved.to_arrow().cast(pq.read_schema(part)), part)
    by_name = {f.name: f for f in skew(folder, served).fields}
    assert by_name["user_views"].rows == len(DAY) // 2 and not by_name["user_views"].mismatches


def test_late_outcomes_are_shown_by_drift(tmp_path: Path) -> None:
    row = Row(LOG[0].time, True, "u", "i", ("a", "b"), ("x", "f"))
    book = book_for(SCHEMA, path=tmp_path / STATE_FILE)
    rows = [replace(row, time=row.time + n * 1_000_000) for n in range(4)]
    with book.transaction():
        for number, one in enumerate(rows):
            play(book, SCHEMA, impression(one, number))
        play(book, SCHEMA, click(rows[0], 0, rows[3].time))
        play(book, SCHEMA, click(rows[1], 1, row.time + 60 * SECOND))  # the delay of clicks is 5 s
        play(book, SCHEMA, click(rows[2], 2, row.time + 602 * SECOND))
        play(book, SCHEMA, click(rows[3], 3, row.time + 700 * SECOND))  # its window is closed
    book.close()
    found = feedback_assumption(tmp_path)
    assert (found.in_time, found.late, found.lost) == (1, 2, 0) or (found.in_time, found.late) == (1, 2)
    report = DriftReport("m", "b", 1, 1, {}, 1, 1, ("", ""), 0.1, ())
    lines = verdict_lines(replace(report, feedback=found))
    assert any("of clicks break the assumption of feedback_delay (2 came later" in line for line in lines)
    assert replace(report, feedback=found).as_json()["feedback"]["broken_share"] == found.broken_share > 0.6
    assert report.as_json()["feedback"] is None
    with pytest.raises(DataError, match="contains no state of an event log"):
        feedback_assumption(tmp_path / "none")
