"""The prediction log: what was scored is what is read back, nothing waits for it, and a kill leaves whole parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from serving.config import ServingConfig
from serving.open_service import open_service
from serving.telemetry.parts import STALE_SECONDS, PartFolder
from serving.telemetry.prediction_log import SALT, PredictionLog, PredictionLogConfig, ServedRequest, in_sample
from tests.serving.conftest import Lines
from tests.serving.fakes import make_service
from tests.serving.small import MODEL_VERSION, SCHEMA
from thinktwice.errors import SchemaError, ServerError
from thinktwice.monitor.record import log_schema
from thinktwice.records.answer import Answered
from thinktwice.records.served import PART, USER_IDS
from thinktwice.schema import parse_schema

CONTEXT = {"slot": "s1", "bid": 0.5, "timestamp": "2026-01-06T10:00:00Z"}
ONE = {"user_id": "u1", "candidates": ["i1", "i2", "never"], "context": CONTEXT}


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(folder.glob(PART)) for row in pq.read_table(part).to_pylist()]


def answered(rows: int = 2, **more: Any) -> Answered:
    own: dict[str, Any] = {
        "item_ids": tuple(f"i{i}" for i in range(rows)),
        "probability": (0.5,) * rows,
        "uncertainty": (0.25,) * rows,
        "num_paths": (1,) * rows,
        "rank": tuple(range(1, rows + 1)),
        "cold_items": (False,) * rows,
        "stale_items": (False,) * rows,
        **dict.fromkeys(("cold_user", "stale_user", "stale", "paths_capped"), False),
        **dict.fromkeys(("defaulted", "default_features"), ()),
        "model_version": "v",
        "bundle_hash": "h",
    }
    return Answered(**own | more)


def served(number: int, rows: int = 2, **more: Any) -> ServedRequest:
    return ServedRequest(
        request_id=f"r{number}",
        at=1_790_000_000.25,
        arm="a",
        user_id="u",
        shared={"gender": "f", "history": ["i1"], "bid": 1},
        items=[{"genre": "g", "price": 2, "cover": [0.0, 1.0, 2.0]}] * rows,
        answer=answered(rows, **more),
    )


def config(folder: Path, **more: Any) -> PredictionLogConfig:
    return PredictionLogConfig(folder=str(folder), **{"sample": 1.0, **more})


def test_what_was_scored_is_what_is_read(small: Path, tmp_path: Path) -> None:
    log = PredictionLog(SCHEMA, config(tmp_path))
    service = make_service(small / "bundle", ServingConfig(arm="b"), log=log)
    body = {"instances": [ONE, {"rows": [{"gender": "m", "price": 3, "history": ["i1", "i2"]}]}]}
    reply = service.answer(json.dumps(body).encode(), {"x-request-id": "abc"})
    first, second = json.loads(reply.body)["predictions"]
    service.close()
    rows = read(tmp_path)
    assert [r["log_request_id"] for r in rows] == ["abc"] * 4
    assert [r["log_item_id"] for r in rows] == ["i1", "i2", "never", None]
    assert [r["log_probability"] for r in rows] == [i["probability"] for i in first["items"] + second["rows"]]
    assert [r["log_uncertainty"] for r in rows] == [i["uncertainty"] for i in first["items"] + second["rows"]]
    assert [r["log_num_paths"] for r in rows] == [i["num_paths"] for i in first["items"] + second["rows"]]
    assert [r["log_place"] for r in rows] == [0, 1, 2, 3]
    assert [r["log_cold_item"] for r in rows] == [False, False, True, False]
    assert {(r["log_arm"], r["log_model_version"]) for r in rows} == {("b", MODEL_VERSION)}
    assert rows[0]["log_user_id"] == rows[0]["user_id"] == "u1"
    assert [r["item_id"] for r in rows] == ["i1", "i2", "never", None], "ids are fields of the model as well"
    assert (rows[0]["genre"], rows[0]["price"], rows[0]["cover"]) == ("g1", 1.0, [0.0, 0.5, 1.0])
    assert (rows[0]["slot"], rows[0]["bid"], rows[0]["hour"], rows[0]["history"]) == ("s1", 0.5, "10", ["i1", "i2"])
    assert (rows[2]["genre"], rows[2]["price"]) == (None, None)
    assert (rows[3]["gender"], rows[3]["price"], rows[3]["log_user_id"]) == ("m", 3.0, None)
    assert log.counts == {"offered": 2, "sampled": 2, "written": 2, "dropped": 0, "failed": 0}


def test_parts_are_not_for_everybody(tmp_path: Path) -> None:
    """They hold ids of users, and somebody may have made the folder for all to read."""
    (tmp_path / "open").mkdir(mode=0o755)
    for folder in (tmp_path / "open", tmp_path / "new"):
        log = PredictionLog(SCHEMA, config(folder))
        log.offer(served(1))
        log.close()
        (part,) = folder.glob(PART)
        assert part.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "new").stat().st_mode & 0o007 == 0


def test_every_field_of_the_model_has_a_typed_column() -> None:
    columns = log_schema(SCHEMA)
    fields = SCHEMA.model_fields_in_order()
    assert set(columns.names) >= {f.name for f in fields}
    assert {str(columns.field(f.name).type) for f in fields if f.kind == "numeric"} == {"double"}
    assert len(set(columns.names)) == len(columns.names)


def test_a_field_with_the_name_of_our_column_is_refused() -> None:
    schema = parse_schema("{name: x, time: {column: t}, fields: [{name: log_place}, {name: log_price}]}", where="test")
    with pytest.raises(SchemaError, match="'log_place' has the name of a column of the prediction log"):
        log_schema(schema)


def test_arrays_tuples_and_empty_texts_are_taken_as_the_encoder_takes_them(tmp_path: Path) -> None:
    log = PredictionLog(SCHEMA, config(tmp_path))
    items = [{"genre": "", "price": np.float32(0.5), "cover": np.array([1, 2, 3], np.float32)}, {"genre": "g"}]
    log.offer(replace(served(0), shared={"gender": "f", "history": ("i1", "i2"), "bid": 3}, items=items))
    log.close()
    first, second = read(tmp_path)
    assert (first["genre"], first["price"], first["cover"]) == (None, 0.5, [1.0, 2.0, 3.0])
    assert (first["history"], first["bid"], second["history"]) == (["i1", "i2"], 3.0, ["i1", "i2"])
    assert (second["genre"], second["price"], second["cover"]) == ("g", None, None)


def test_one_request_that_cannot_be_written_costs_itself_alone(tmp_path: Path) -> None:
    log = PredictionLog(SCHEMA, config(tmp_path))
    wrong: list[dict[str, Any]] = [{"items": [{"price": "cheap"}] * 2}, {"items": [{"genre": "\ud800"}] * 2}]
    wrong += [
        {"answer": answered(probability=(0.5, 0.5, 0.5))},
        {"at": 1e300},
        {"request_id": "\udcff"},
        {"items": [None, None]},
    ]
    for number in range(4):
        log.offer(served(number))
        log.offer(replace(served(100 + number), **wrong[number]))
    for change in wrong[4:]:
        assert log.offer(replace(served(200), **change))
    log.close()
    assert [r["log_request_id"] for r in read(tmp_path)][::2] == [f"r{i}" for i in range(4)]
    assert log.counts == {"offered": 10, "sampled": 10, "written": 4, "dropped": 0, "failed": 6}


@pytest.mark.parametrize("user_ids", ["hashed", "none"])
def test_user_ids_can_be_hidden(user_ids: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SALT, raising=False)
    if user_ids == "hashed":
        with pytest.raises(ServerError, match=f"{SALT} is not set"):
            PredictionLog(SCHEMA, config(tmp_path, user_ids=user_ids))
    shown = []
    for salt in ("one secret", "one secret", "another"):
        monkeypatch.setenv(SALT, salt)
        folder = tmp_path / str(len(shown))
        log = PredictionLog(SCHEMA, config(folder, user_ids=user_ids))
        log.offer(replace(served(0), user_id="anna", shared={"user_id": "anna"}))
        log.offer(replace(served(1, item_ids=None), user_id=None, items=[{"user_id": "anna"}] * 2))
        log.close()
        (part,) = folder.glob(PART)
        assert b"anna" not in part.read_bytes()
        assert (pq.read_schema(part).metadata or {})[USER_IDS] == user_ids.encode()
        rows = read(folder)
        assert rows[0]["log_user_id"] == rows[0]["user_id"] == rows[2]["user_id"]
        assert rows[2]["log_user_id"] is None
        shown.append(rows[0]["user_id"])
    assert (shown[0] is None) == (user_ids == "none")
    assert shown[0] == shown[1] and (shown[0] != shown[2] or user_ids == "none")


def test_the_sample_is_a_matter_of_the_id_alone() -> None:
    ids = [f"request-{i}" for i in range(20_000)]
    kept = [i for i in ids if in_sample(i, 0.1)]
    assert abs(len(kept) - 2000) < 5 * (2000 * 0.9) ** 0.5
    assert set(kept) <= {i for i in ids if in_sample(i, 0.2)}, "a larger sample contains the smaller"
    assert all(in_sample(i, 1.0) for i in ids)


def test_parts_end_by_rows_and_at_the_end(tmp_path: Path) -> None:
    log = PredictionLog(SCHEMA, config(tmp_path, part_rows=10, part_seconds=1000))
    for number in range(12):
        assert log.offer(served(number))
    log.close()
    sizes = [pq.read_metadata(part).num_rows for part in sorted(tmp_path.glob(PART))]
    assert sizes == [10, 10, 4]
    assert [r["log_request_id"] for r in read(tmp_path)][::2] == [f"r{i}" for i in range(12)]


def test_parts_end_by_time(tmp_path: Path) -> None:
    log = PredictionLog(SCHEMA, config(tmp_path, part_seconds=0.05))
    log.offer(served(0))
    for _ in range(400):
        if list(tmp_path.glob(PART)):
            break
        threading.Event().wait(0.02)
    assert len(read(tmp_path)) == 2
    log.close()


class Gate:
    """Holds the writer of a log up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        write = PredictionLog._write

        def slow(log: PredictionLog, part: list[pa.RecordBatch]) -> None:
            self.entered.set()
            assert self.opened.wait(30)
            write(log, part)

        monkeypatch.setattr(PredictionLog, "_write", slow)


def adds_up(log: PredictionLog) -> bool:
    return sum(log.counts[k] for k in ("written", "dropped", "failed")) == log.counts["sampled"]


def test_a_full_queue_drops_and_counts_and_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    log = PredictionLog(SCHEMA, config(tmp_path, queue=3, part_rows=1))
    assert log.offer(served(0)) and gate.entered.wait(10)
    taken = [log.offer(served(number)) for number in range(1, 8)]
    assert taken == [True] * 3 + [False] * 4
    gate.opened.set()
    log.close()
    assert log.counts == {"offered": 8, "sampled": 8, "written": 4, "dropped": 4, "failed": 0}
    assert adds_up(log)


def test_the_end_waits_for_a_disk_that_hangs_no_longer_than_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    log = PredictionLog(SCHEMA, config(tmp_path, queue=3, part_rows=1))
    assert log.offer(served(0)) and gate.entered.wait(10)
    for number in range(1, 5):
        log.offer(served(number))
    log.close(limit=0.05)
    assert log.counts == {"offered": 5, "sampled": 5, "written": 0, "dropped": 4, "failed": 0}, "one is still under way"
    assert log.offer(served(9)) is False, "nothing is taken after the end"
    gate.opened.set()
    log._thread.join(10)
    assert log.counts == {"offered": 6, "sampled": 6, "written": 1, "dropped": 5, "failed": 0}


@given(
    sizes=st.lists(st.integers(1, 5), max_size=30),
    queue=st.integers(1, 8),
    part_rows=st.integers(1, 20),
    sample=st.sampled_from([0.3, 1.0]),
    max_bytes=st.sampled_from([1, 9_000, 40_000, 1 << 30]),
    when_full=st.sampled_from(["drop_new", "drop_old"]),
    bad=st.sets(st.integers(0, 29), max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_every_sampled_request_is_written_dropped_or_failed(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], bad: set[int], **more: Any
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = PredictionLog(SCHEMA, config(folder, **more))
    for number, rows in enumerate(sizes):
        log.offer(replace(served(number, rows), **({"at": float("nan")} if number in bad else {})))
    log.close()
    assert log.counts["offered"] == len(sizes) and adds_up(log)
    assert log.counts["sampled"] == sum(in_sample(f"r{i}", more["sample"]) for i in range(len(sizes)))
    if more["when_full"] == "drop_new":
        kept = {r["log_request_id"] for r in read(folder)}
        assert len(kept) == log.counts["written"], "whole requests, and as many as counted"
    assert sum(part.stat().st_size for part in folder.glob(PART)) <= more["max_bytes"]


def test_threads_may_offer_at_the_same_time(tmp_path: Path) -> None:
    log = PredictionLog(SCHEMA, config(tmp_path, queue=50))
    threads = [
        threading.Thread(target=lambda k=k: [log.offer(served(1000 * k + i)) for i in range(200)]) for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert log.counts["offered"] == log.counts["sampled"] == 800 and adds_up(log)
    assert len({r["log_request_id"] for r in read(tmp_path)}) == log.counts["written"] >= 50


def test_a_folder_that_cannot_be_written_costs_the_log_and_not_the_server(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = PredictionLog(SCHEMA, config(tmp_path / "file" / "log", part_rows=1))
    for number in range(3):
        assert log.offer(served(number))
    log.close()
    assert log.counts == {"offered": 3, "sampled": 3, "written": 0, "dropped": 0, "failed": 3}


class Heard:
    """What a log tells about its folder."""

    def __init__(self) -> None:
        self.said: list[bool] = []
        self.changed = threading.Condition()

    def __call__(self, writable: bool) -> None:
        with self.changed:
            self.said.append(writable)
            self.changed.notify_all()

    def wait(self, writable: bool) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: bool(self.said) and self.said[-1] is writable, 30)


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """A place that takes no file, for root too."""
    away = folder.rename(folder.with_name("away"))
    folder.write_text("not a folder")
    yield
    folder.unlink()
    away.rename(folder)


def test_an_unwritable_folder_is_told_at_the_start_and_tried_again_without_a_request(
    tmp_path: Path, lines: Lines
) -> None:
    folder, heard = tmp_path / "log", Heard()
    folder.mkdir()
    with refusing(folder):
        log = PredictionLog(SCHEMA, config(folder, sample=1e-9, part_seconds=0.05), heard)
        assert heard.wait(False)
        while heard.said.count(False) < 3:  # tried again, and said once
            time.sleep(0.01)
    assert heard.wait(True)
    log.close()
    first, second = lines
    assert (first["level"], second["level"]) == ("error", "warning")
    assert f"nothing can be written to {folder}" in first["message"] and f"user {os.geteuid()}" in first["message"]
    assert "can be written again" in second["message"]
    assert list(folder.iterdir()) == [], "a check leaves nothing behind"
    assert log.counts == {"offered": 0, "sampled": 0, "written": 0, "dropped": 0, "failed": 0}


def test_a_folder_of_somebody_else_is_told(tmp_path: Path, lines: Lines) -> None:
    """A volume that belongs to root, and a server of user 1000."""
    folder, heard, root = tmp_path / "log", Heard(), os.geteuid() == 0
    folder.mkdir(mode=0o555)
    if root:
        os.seteuid(1000)
    try:
        PredictionLog(SCHEMA, config(folder), heard).close()
    finally:
        if root:
            os.seteuid(0)
    assert heard.said == [False]
    assert "(Permission denied)" in next(iter(lines))["message"]


def test_a_folder_that_is_lost_and_comes_back_is_told_by_what_is_written(tmp_path: Path) -> None:
    folder, heard = tmp_path / "log", Heard()
    folder.mkdir()
    log = PredictionLog(SCHEMA, config(folder, part_rows=1, part_seconds=1000), heard)
    assert heard.wait(True)
    with refusing(folder):
        log.offer(served(0))
        assert heard.wait(False)
    log.offer(served(1))
    assert heard.wait(True)
    log.close()
    assert log.counts == {"offered": 2, "sampled": 2, "written": 1, "dropped": 0, "failed": 1}


@pytest.mark.parametrize("writable", [True, False])
def test_a_server_shows_an_unwritable_log_as_a_metric_and_answers(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    registry = CollectorRegistry()
    scorer = make_service(small / "bundle").scorer
    monkeypatch.setattr("serving.open_service.open_scorer", lambda *_, **__: scorer)
    (tmp_path / "log").mkdir() if writable else (tmp_path / "log").write_text("in the way")
    settings = ServingConfig(arm="b", prediction_log=config(tmp_path / "log", part_seconds=0.01))
    service = open_service(small / "bundle", settings, model_name="ctr", registry=registry)
    assert service.answer(json.dumps({"instances": [ONE]}).encode(), {}).status == 200
    service.close()
    labels = {"arm": "b", "model_version": MODEL_VERSION}
    assert registry.get_sample_value("thinktwice_prediction_log_unwritable", labels) == float(not writable)


def test_a_disk_that_is_full_for_a_while_costs_what_was_due_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]
    write = PartFolder.write

    def limited(self: PartFolder, data: memoryview) -> bool:
        if full[0]:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(PartFolder, "write", limited)
    log = PredictionLog(SCHEMA, config(tmp_path, part_rows=1))
    for number in range(6):
        if number == 3:
            while log.counts["failed"] < 3:
                time.sleep(0.005)
            full[0] = False
        log.offer(served(number))
    log.close()
    assert log.counts == {"offered": 6, "sampled": 6, "written": 3, "dropped": 0, "failed": 3}
    assert [r["log_request_id"] for r in read(tmp_path)][::2] == ["r3", "r4", "r5"]


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_younger(tmp_path: Path) -> None:
    old, young = tmp_path / ".served-1.parquet.abc.part", tmp_path / ".served-2.parquet.abc.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * STALE_SECONDS,) * 2)
    log = PredictionLog(SCHEMA, config(tmp_path))
    log.offer(served(0))
    log.close()
    assert not old.exists() and young.exists() and log.counts["written"] == 1


@pytest.mark.parametrize("when_full", ["drop_new", "drop_old"])
def test_the_size_of_the_log_is_bounded(tmp_path: Path, when_full: str) -> None:
    log = PredictionLog(SCHEMA, config(tmp_path, part_rows=1, max_bytes=30_000, when_full=when_full))
    for number in range(20):
        log.offer(served(number))
    log.close()
    kept = [r["log_request_id"] for r in read(tmp_path)][::2]
    assert 1 <= len(kept) < 20
    assert sum(part.stat().st_size for part in tmp_path.glob(PART)) <= 30_000
    assert kept == [f"r{i}" for i in range(len(kept))] if when_full == "drop_new" else kept[-1] == "r19"
    assert log.counts["dropped"] == (20 - len(kept) if when_full == "drop_new" else 0)


WRITER = """
import sys, time
from tests.serving.test_prediction_log import SCHEMA, PredictionLog, config, served
from pathlib import Path
log = PredictionLog(SCHEMA, config(Path(sys.argv[1]), part_rows=50, queue=100000))
number = 0
while True:
    log.offer(served(number))
    number += 1
    time.sleep(0.0001)
    if number == 100:
        print("going", flush=True)
"""


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_a_kill_leaves_whole_parts(tmp_path: Path, parts: int) -> None:
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=root) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"going\n"
        for _ in range(2000):
            if len(list(tmp_path.glob(PART))) >= parts:
                break
            threading.Event().wait(0.003)
        writer.send_signal(signal.SIGKILL)
    rows = read(tmp_path)
    assert len(rows) >= 50 * parts
    assert [r["log_request_id"] for r in rows] == [f"r{i // 2}" for i in range(len(rows))]
