"""From requests that a predictor answered to an ordinary log with outcomes: real records all the way."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import ServingConfig
from serving.feedback import clicks
from serving.feedback.clicks import write_clicks
from serving.feedback.event_log import EventLog, line_of, read_all, read_file, segment_file, segments
from serving.feedback.outcomes import JOINED, join
from serving.feedback.records import Record
from serving.gateway.collect import collect
from serving.telemetry.prediction_log import PredictionLog, PredictionLogConfig
from tests.experiment.files import experiment
from tests.serving.fakes import make_service
from tests.serving.small import PLAIN_SCHEMA, SCHEMA
from thinktwice.cli import main
from thinktwice.data.ingest import ingest
from thinktwice.data.outcome_log import LOG
from thinktwice.errors import DataError, ExperimentError
from thinktwice.experiment.assignment import assign, layout_of
from thinktwice.experiment.exposures import read_collected, sole_writer
from thinktwice.experiment.outcome_parts import KEPT
from thinktwice.experiment.outcomes import OUTCOMES, Window
from thinktwice.experiment.record import append_effect, append_start
from thinktwice.schema import parse_schema
from thinktwice.validate.split import split_log

FILE = experiment("exp1", coverage=0.6)
LAYOUT = layout_of([FILE])
LATE = datetime(2100, 1, 1, tzinfo=timezone.utc) - timedelta(days=1)
ITEMS = ["i1", "i2", "i3"]


def served(small: Path, folder: Path, requests: int = 60, user_ids: str = "raw") -> datetime:
    """Requests to the servers of both arms, as a gateway sends them, and its access log. Returns a time after all of them."""
    lines, services = [], {}
    for arm in ("control", "t1"):
        config = PredictionLogConfig(folder=str(folder / "served"), sample=1.0, user_ids=user_ids)
        log = PredictionLog(SCHEMA, config)
        services[arm] = make_service(
            small / "bundle", ServingConfig(arm=arm, prediction_log=config, shed=False), log=log
        )
    for number in range(requests):
        found = assign(LAYOUT, f"u{number % 30}")
        headers = {
            "x-request-id": f"r{number}", "x-experiment": found.experiment, "x-arm": found.arm, "x-ab-salt": LAYOUT.salt,
            "x-enrolled": "1" if found.enrolled else "0", "x-ab-unit": f"u{number % 30}", "host": "h", "x-ab-host": "h",
        }  # fmt: skip
        now = datetime.now(timezone.utc).timestamp()
        body = {
            "instances": [{"user_id": f"u{number % 30}", "candidates": ITEMS, "context": {"slot": f"s{number % 3}"}}]
        }
        reply = services[found.arm].answer(json.dumps(body).encode(), headers)
        line = {
            "ts": f"{now:.6f}", "request_id": f"r{number}", "experiment": found.experiment, "assigned": found.arm,
            "enrolled": headers["x-enrolled"], "served": reply.headers["x-served-arm"], "code": reply.status, "attempts": 1, "ms": 3,
        }  # fmt: skip
        lines.append(json.dumps(line))
    for service in services.values():
        service.close()
    (folder / "gateway").mkdir()
    (folder / "gateway" / "access.log").write_text("\n".join(lines) + "\n")
    return datetime.now(timezone.utc)


def micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


def feed(folder: Path, records: list[Record]) -> None:
    log = EventLog(folder)
    log.append(records)
    log.close()


@pytest.fixture
def shown(small: Path, tmp_path: Path) -> datetime:
    """A collection of exposures with clicks on every third request, whose windows of a minute have closed."""
    end = served(small, tmp_path)
    collect([FILE], tmp_path / "gateway", [tmp_path / "served"], tmp_path / "exposures", end + timedelta(seconds=60))
    at = micros(end)
    clicks = [Record("click", at, f"r{n}", "i2", None, at) for n in range(0, 60, 3)]
    feed(tmp_path / "events", [*clicks, Record("tick", at + 120_000_000)])
    return end


def test_the_joined_rows_are_an_ordinary_log(shown: datetime, tmp_path: Path) -> None:
    out = tmp_path / "outcomes"
    done = join(tmp_path / "events", tmp_path / "exposures", out, Window(seconds=60), schema=SCHEMA)
    assert done.counts.final == 180 and done.counts.matched == 20 and done.counts.clicks == 20
    assert {p.name for p in out.iterdir()} == {OUTCOMES, JOINED, LOG, KEPT, "schema.yaml"}
    rows = pl.read_parquet(out / OUTCOMES)
    enrolled = rows.filter(pl.col("log_enrolled"))
    assert done.log is not None and 0 < done.log.running == enrolled.height and done.log.rows == 180 - enrolled.height
    kept = join(
        tmp_path / "events", tmp_path / "exposures", out, Window(seconds=60), schema=SCHEMA, include_running=True
    )
    assert kept.log is not None and (kept.log.rows, kept.log.running) == (180, 0)
    ended = join(tmp_path / "events", tmp_path / "exposures", out, Window(seconds=60), schema=SCHEMA, ended={"exp1"})
    assert ended.log is not None and (ended.log.rows, ended.log.running) == (180, 0)
    ingest("parquet", out / LOG, out / "schema.yaml", tmp_path / "raw")
    result = split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    assert (result.rows_clean, result.rows_quarantined) == (180, 0)
    clean = pl.read_parquet(tmp_path / "clean" / "clean.parquet")
    assert clean["label"].sum() == 20 and set(clean["item_id"]) == set(ITEMS)
    log = pl.read_parquet(out / LOG)
    assert set(log["log_assigned_arm"]) == {"control", "t1"} and set(log["slot"]) == {"s0", "s1", "s2"}
    assert log["genre"].to_list() == rows["genre"].to_list(), "features as they were served"


def test_the_command(
    shown: datetime, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schema.yaml").write_text(SCHEMA.to_yaml())
    line = ["outcomes", "--log", "events", "--exposures", "exposures", "--window", "60"]
    assert main(line) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "180 outcomes, 20 of them clicked" in said and "no log for training" in said
    assert main([*line, "--schema", "schema.yaml"]) == 0
    assert "rows of running experiments, not in log.parquet" in capsys.readouterr().out
    record = tmp_path / ".thinktwice" / "experiments" / "exp1" / "record.jsonl"
    append_start(record, FILE, shown)
    assert main([*line, "--schema", "schema.yaml"]) == 0
    assert "running experiments" in capsys.readouterr().out
    assert main([*line, "--schema", "schema.yaml", "--include-running"]) == 0
    assert "running experiments" not in capsys.readouterr().out
    append_effect(record, "stop", 0.0, shown + timedelta(hours=1), why="a test")
    assert main([*line, "--schema", "schema.yaml"]) == 0
    assert "running experiments" not in capsys.readouterr().out
    assert pl.read_parquet(tmp_path / ".thinktwice" / "outcomes" / LOG).height == 180


def test_every_click_is_counted_and_labels_do_not_change(shown: datetime, tmp_path: Path) -> None:
    """Late, duplicate, early, unmatched and not yet collected ones; and one that arrives after its exposure was written."""
    at, second = micros(shown), 1_000_000
    first = join(tmp_path / "events", tmp_path / "exposures", tmp_path / "a", Window(seconds=60)).counts
    more = [
        Record("click", at + 130 * second, "r0", "i2", None, at + second),  # the second click on it arrives late
        Record("click", at + 130 * second, "r1", "i1", None, at + second),  # in the window, arrives after it
        Record("click", at + 130 * second, "r2", "i1", None, at + 90 * second),  # after the window
        Record("click", at + 130 * second, "r4", "i1", None, at - 3600 * second),  # a clock is an hour behind
        Record("click", at + 130 * second, "gone", "i1", None, at - second),
        Record("click", at + 130 * second, "gone", "i1", None, at - 10**6 * second),
        Record("click", at + 130 * second, "next", "i1", None, at + 100 * second),  # its exposure is not collected yet
        Record("click", at + 130 * second, "r5", None, None, at),
        Record("impression", at + 130 * second, "r5", "i1", "u", at, {}),
    ]  # fmt: skip
    feed(tmp_path / "events", more)
    second_run = join(tmp_path / "events", tmp_path / "exposures", tmp_path / "b", Window(seconds=60)).counts
    assert second_run.model_dump() == first.model_dump() | {
        "clicks": 28, "late": 3, "before_exposure": 1, "unmatched": 1, "older": 1, "pending": 1, "broken": 1,
    }  # fmt: skip
    key = ["log_request_id", "log_place"]
    before, after = (pl.read_parquet(tmp_path / name / OUTCOMES).sort(key) for name in "ab")
    assert before.equals(after)
    patient = join(
        tmp_path / "events", tmp_path / "exposures", tmp_path / "c", Window(seconds=60, late_seconds=3600)
    ).counts
    assert patient.final == 0 and patient.open == 180


def test_the_file_of_clicks_is_the_log(shown: datetime, tmp_path: Path) -> None:
    (table,), until = write_clicks(tmp_path / "events", tmp_path / "clicks")
    records = [r for batch in read_all(tmp_path / "events") for r in batch]
    found = pl.read_parquet(table)
    clicks = [(r.request_id, r.item_id, r.time, r.at) for r in records if r.kind == "click"]
    assert found.with_columns(pl.col("at", "received_at").dt.epoch("us")).rows() == clicks
    assert until is not None and micros(until) == records[-1].at


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 10**6), st.integers(150, 900))
def test_a_complete_file_of_events_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, looks: list[int], seed: int, size: int
) -> None:
    """Whenever it is looked at, and whatever a killed run left: the tables are the clicks of the log, in order."""
    folder, rng = tmp_path_factory.mktemp("events"), random.Random(seed)
    events, tables = folder / "events", folder / "tables"
    log, written, read, last_numbers = EventLog(events, size), [], [], set()

    def counted(place: Path, number: int) -> Iterator[list[bytes]]:
        read.append(number)
        return read_file(place, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clicks, "read_file", counted)
        for events_now in looks:
            for _ in range(events_now):
                at = len(written) + 1
                kind = rng.choice(["click", "impression", "tick"])
                values = {} if kind == "impression" else None
                written.append(
                    Record("tick", at) if kind == "tick" else Record(kind, at, f"r{at}", "i", None, at, values)
                )
                log.append([written[-1]])
            read.clear()
            found, until = write_clicks(events, tables)
            numbers = segments(events)
            assert set(read) == set(numbers) - last_numbers, "what was complete at the last look is not read again"
            last_numbers = set(numbers[:-1])
            rows = [row for table in found for row in pl.read_parquet(table)["request_id"].to_list()]
            assert rows == [r.request_id for r in written if r.kind == "click"]
            assert (until is None) is not bool(written) and (until is None or micros(until) == len(written))
            assert set(tables.iterdir()) == set(found)
            for left in (".clicks-open.parquet.x.part", "clicks-v0-0000000000-1-1-1.parquet"):
                (tables / left).write_bytes(b"half")
        if last_numbers:  # a file that was restored from a copy is read again
            number = rng.choice(sorted(last_numbers))
            os.utime(segment_file(events, number), ns=(1, 1))
            read.clear()
            write_clicks(events, tables)
            assert number in read
    log.close()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_line_of_any_kind_is_refused(tmp_path_factory: pytest.TempPathFactory, place: int, byte: int) -> None:
    folder = tmp_path_factory.mktemp("events")
    records = [
        Record("impression", 1, "r", "i", "u", 1, {"a": "b"}),
        Record("click", 2, "r", "i", None, 2),
        Record("tick", 3),
    ]
    feed(folder, records)
    path = segment_file(folder, 0)
    data = bytearray(path.read_bytes())
    last = len(data) - len(line_of(records[-1]))
    place %= last
    if data[place] == byte or (chr(data[place]).lower() == chr(byte).lower() and chr(byte) in "abcdefABCDEF"):
        return  # the digits of a checksum may be of any case
    data[place] = byte
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged at byte"):
        write_clicks(folder, folder / "clicks")
    assert list((folder / "clicks").iterdir()) == []


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no feedback log": (lambda f: join(f / "no", f / "exposures", f / "out", Window()), "no event log"),
    "no exposures": (lambda f: join(f / "events", f / "no", f / "out", Window()), "thinktwice exposures"),
    "another log's schema": (
        lambda f: join(f / "events", f / "exposures", f / "out", Window(), schema=PLAIN_SCHEMA), "no column 'site'"),
    "another field": (
        lambda f: join(f / "events", f / "exposures", f / "out", Window(), schema=parse_schema(
            "{name: x, time: {format: order}, fields: [{name: never}]}", where="t")), "no column 'never'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(shown: datetime, tmp_path: Path, case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises((DataError, ExperimentError), match=words):
        call(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_run_waits_for_no_other(shown: datetime, tmp_path: Path) -> None:
    with sole_writer(tmp_path / "exposures"), pytest.raises(ExperimentError, match="another run"):
        join(tmp_path / "events", tmp_path / "exposures", tmp_path / "out", Window())


def test_hidden_ids_give_outcomes_and_no_log(small: Path, tmp_path: Path) -> None:
    end = served(small, tmp_path, 20, user_ids="none")
    collect([FILE], tmp_path / "gateway", [tmp_path / "served"], tmp_path / "exposures", end)
    assert read_collected(tmp_path / "exposures").user_ids == "none"
    feed(tmp_path / "events", [Record("tick", micros(end) + 10**9)])
    assert join(tmp_path / "events", tmp_path / "exposures", tmp_path / "out", Window(seconds=60)).counts.final == 60
    with pytest.raises(DataError, match="hides user ids"):
        join(tmp_path / "events", tmp_path / "exposures", tmp_path / "out", Window(seconds=60), schema=SCHEMA)
