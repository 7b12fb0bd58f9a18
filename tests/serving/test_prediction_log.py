"""The prediction log: what was scored is what is read back, nothing waits for it, and a kill leaves whole parts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from serving.config import ServingConfig
from serving.prediction_log import PART, PredictionLog, PredictionLogConfig, Served, in_sample, log_schema
from tests.serving.fakes import make_service
from tests.serving.small import MODEL_VERSION, SCHEMA

CONTEXT = {"slot": "s1", "bid": 0.5, "timestamp": "2026-01-06T10:00:00Z"}
ONE = {"user_id": "u1", "candidates": ["i1", "i2", "never"], "context": CONTEXT}


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(folder.glob(PART)) for row in pq.read_table(part).to_pylist()]


def served(number: int, rows: int = 2) -> Served:
    return Served(
        request_id=f"r{number}",
        at=1_790_000_000.25,
        arm="a",
        model_version="v",
        bundle_hash="h",
        user_id="u",
        item_ids=tuple(f"i{i}" for i in range(rows)),
        shared={"gender": "f", "history": ["i1"], "bid": 1},
        items=[{"genre": "g", "price": 2, "cover": [0.0, 1.0, 2.0]}] * rows,
        probability=(0.5,) * rows,
        uncertainty=(0.25,) * rows,
        num_paths=(1,) * rows,
        cold_user=False,
        cold_items=(False,) * rows,
        stale=False,
        defaulted=(),
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
    assert [r["log_place"] for r in rows] == [0, 1, 2, 0]
    assert [r["log_cold_item"] for r in rows] == [False, False, True, False]
    assert {(r["log_arm"], r["log_model_version"]) for r in rows} == {("b", MODEL_VERSION)}
    assert rows[0]["log_user_id"] == rows[0]["user_id"] == "u1"
    assert (rows[0]["genre"], rows[0]["price"], rows[0]["cover"]) == ("g1", 1.0, [0.0, 0.5, 1.0])
    assert (rows[0]["slot"], rows[0]["bid"], rows[0]["hour"], rows[0]["history"]) == ("s1", 0.5, "10", ["i1", "i2"])
    assert (rows[2]["genre"], rows[2]["price"]) == (None, None)
    assert (rows[3]["gender"], rows[3]["price"], rows[3]["log_user_id"]) == ("m", 3.0, None)
    assert log.counts == {"sampled": 2, "written": 2, "dropped": 0, "failed": 0}


def test_every_field_of_the_model_has_a_typed_column() -> None:
    columns = log_schema(SCHEMA)
    fields = SCHEMA.model_fields_in_order()
    assert set(columns.names) >= {f.name for f in fields}
    assert {str(columns.field(f.name).type) for f in fields if f.kind == "numeric"} == {"double"}
    assert len(set(columns.names)) == len(columns.names)


def test_the_sample_is_a_matter_of_the_id_alone() -> None:
    ids = [f"request-{i}" for i in range(20_000)]
    kept = [i for i in ids if in_sample(i, 0.1)]
    assert abs(len(kept) - 2000) < 5 * (2000 * 0.9) ** 0.5
    assert set(kept) <= {i for i in ids if in_sample(i, 0.2)}, "a larger sample holds the smaller"
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


def test_a_full_queue_drops_and_counts_and_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    entered = threading.Event()
    write = PredictionLog._write

    def slow(self: PredictionLog, requests: list[Served]) -> None:
        entered.set()
        assert gate.wait(30)
        write(self, requests)

    monkeypatch.setattr(PredictionLog, "_write", slow)
    log = PredictionLog(SCHEMA, config(tmp_path, queue=3, part_rows=1))
    assert log.offer(served(0)) and entered.wait(10)
    taken = [log.offer(served(number)) for number in range(1, 8)]
    assert taken == [True] * 3 + [False] * 4
    gate.set()
    log.close()
    assert log.counts == {"sampled": 8, "written": 4, "dropped": 4, "failed": 0}
    assert sum(log.counts[k] for k in ("written", "dropped", "failed")) == log.counts["sampled"]


def test_a_folder_that_cannot_be_written_costs_the_log_and_not_the_server(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = PredictionLog(SCHEMA, config(tmp_path / "file" / "log", part_rows=1))
    for number in range(3):
        assert log.offer(served(number))
    log.close()
    assert log.counts["failed"] == 3


@pytest.mark.parametrize("when_full", ["stop", "forget"])
def test_the_size_of_the_log_is_bounded(tmp_path: Path, when_full: str) -> None:
    log = PredictionLog(SCHEMA, config(tmp_path, part_rows=1, max_bytes=30_000, when_full=when_full))
    for number in range(20):
        log.offer(served(number))
    log.close()
    kept = [r["log_request_id"] for r in read(tmp_path)][::2]
    assert 1 <= len(kept) < 20
    assert kept == [f"r{i}" for i in range(len(kept))] if when_full == "stop" else kept[-1] == "r19"
    assert log.counts["dropped"] == (20 - len(kept) if when_full == "stop" else 0)


WRITER = """
import sys
from tests.serving.test_prediction_log import SCHEMA, PredictionLog, config, served
from pathlib import Path
log = PredictionLog(SCHEMA, config(Path(sys.argv[1]), part_rows=50, queue=100000))
number = 0
while True:
    log.offer(served(number))
    number += 1
    if number == 400:
        print("going", flush=True)
"""


def test_a_kill_leaves_whole_parts(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=root) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"going\n"
        for _ in range(1000):
            if len(list(tmp_path.glob(PART))) >= 3:
                break
            threading.Event().wait(0.01)
        writer.send_signal(signal.SIGKILL)
    rows = read(tmp_path)
    assert len(rows) >= 150
    assert [r["log_request_id"] for r in rows] == [f"r{i // 2}" for i in range(len(rows))]
