"""The service from events to the store: threads in this process, faults of disk and store put in."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.features.feast_source import FeastSource, open_feast
from serving.feedback.book import Row
from serving.feedback.clock import SteadyClock
from serving.feedback.config import FeedbackConfig
from serving.feedback.event_log import EventLog, read_all
from serving.feedback.http import MAX_BODY, MAX_EVENTS, application
from serving.feedback.offline import log_status, replay_log
from serving.feedback.online import OnlineStore
from serving.feedback.quarantine import Quarantine, num_quarantined
from serving.feedback.records import Record
from serving.feedback.rules import EventRules
from serving.feedback.service import Feedback, Recorder
from tests.features import redis_server
from tests.feedback.server import get, running, send, until
from tests.feedback.stores import full_schema, make_store, random_log
from tests.feedback.streams import book_for, rows, run
from thinktwice.data.pushed_views import STATE
from thinktwice.errors import FeatureStoreError, OverloadedError
from thinktwice.files import read_json
from thinktwice.records.events import Impression

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SCHEMA = full_schema(click=0, no_click=1)


def shown(number: int, **more: Any) -> dict[str, Any]:
    event = {"kind": "impression", "request_id": f"r{number}", "item_id": f"i{number % 3}", "user_id": f"u{number % 2}"}
    return {**event, "at": time.time(), "values": {"genre": "a", "sex": "f"}, **more}


def clicked(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "click", "request_id": f"r{number}", "item_id": f"i{number % 3}", "at": time.time(), **more}


@pytest.fixture(scope="module")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("sqlite"), random_log(40), SCHEMA)


class Memory:
    """A store in memory that may be down; a fake beside the real ones of test_online and below."""

    def __init__(self, identity: str = "memory") -> None:
        self.identity, self.closed = identity, False
        self.down, self.rows, self.watermark = False, dict[tuple[str, str], tuple[int, bytes]](), 0
        self.writes = 0

    def write(self, found: list[Row]) -> None:
        self.writes += 1
        if self.down:
            raise FeatureStoreError("the online store does not take user_instant (connection refused)")
        self.rows |= {(r.kind, r.key): (r.stamp, r.content) for r in found}

    def close(self) -> None:
        self.closed = True

    def write_watermark(self, state: bytes, watermark: int, stamp: int) -> None:
        self.write([Row("log", "log", stamp, state)])
        self.watermark = watermark


class Client:
    """Asks an application without a socket."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def post(self, path: str, **content: Any) -> httpx.Response:
        return asyncio.run(self._ask("POST", path, content))

    def get(self, path: str) -> httpx.Response:
        return asyncio.run(self._ask("GET", path, {}))

    async def _ask(self, method: str, path: str, content: dict[str, Any]) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://test") as http:
            return await http.request(method, path, **content)


@contextmanager
def client(folder: Path, store: Any, **config: Any) -> Iterator[tuple[Client, Feedback]]:
    feedback = Feedback(folder, SCHEMA, store, FeedbackConfig(tick=0.05, **config))
    try:
        yield Client(application(feedback, EventRules(SCHEMA), Quarantine(folder))), feedback
    finally:
        feedback.close()


def replayed(folder: Path) -> dict[tuple[str, str], tuple[int, bytes]]:
    """What a fresh replay of the log gives, without the log's own row, whose stamp goes with the watermark."""
    book = book_for(SCHEMA)
    run(book, SCHEMA, [record for part in read_all(folder) for record in part])
    found = rows(book)
    found.pop(("log", "log"), None)
    book.close()
    return found


def stored(store: Memory) -> dict[tuple[str, str], tuple[int, bytes]]:
    return {key: row for key, row in store.rows.items() if key[0] != "log"}


def test_events_become_rows(tmp_path: Path) -> None:
    store = Memory()
    with client(tmp_path, store) as (http, feedback):
        answer = http.post("/v1/events", json={"events": [shown(n) for n in range(6)] + [clicked(1), clicked(99)]})
        assert (answer.status_code, answer.json()) == (202, {"accepted": 8, "quarantined": []})
        until(lambda: feedback.follower.counts().get("outcomes_not_clicked") == 5)
        until(lambda: store.watermark > time.time() * 1e6 - 3e6 and not feedback.follower.to_push)
        counts = feedback.follower.counts()
        metrics = http.get("/metrics").text
        assert 'thinktwice_feedback_events_total{fate="clicks"} 1.0' in metrics
        assert 'thinktwice_feedback_received_total{outcome="accepted"} 8.0' in metrics
        assert http.get("/healthz").json() == {"ok": True, "problems": []}
    assert counts["impressions"] == 6 and counts["clicks"] == 1 and counts["clicks_waiting"] == 1
    assert stored(store) == replayed(tmp_path)
    assert ("user", "u1") in store.rows and ("recent", "u0") in store.rows and ("item", "i2") in store.rows


BAD = [
    ("no object", "an event is a JSON object"),
    ({"kind": "sale"}, "kind"),
    (shown(1, at="yesterday"), "impression.at"),
    (shown(1, at=-1), "impression.at"),
    (shown(1, at=1e12), "impression.at"),
    (shown(1, item_id=None), "item_id: is missing"),
    (shown(1, item_id=["i"]), "item_id: a value of type list"),
    (shown(1, user_id=2.0**60), "user_id: this number could be several ids"),
    (shown(1, user_id="u" * 600), "user_id: has 600 characters"),
    (shown(1, request_id=""), "request_id"),
    (shown(1, request_id="a\x00b"), "request_id: contains a character"),
    (shown(1, values={"colour": "red"}), "values.colour: no counter needs this field; those are"),
    (shown(1, values={"genre": {"a": 1}}), "values.genre: a value of type dict"),
    (shown(1, price=3), "impression.price"),
    ({"kind": "click", "request_id": "r", "item_id": "i"}, "click.at"),
]


def test_what_is_no_event_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    with client(tmp_path, Memory()) as (http, _):
        answer = http.post("/v1/events", json={"events": [*(value for value, _ in BAD), shown(2)]})
        assert answer.status_code == 202 and answer.json()["accepted"] == 1
        found = answer.json()["quarantined"]
        assert [entry["index"] for entry in found] == list(range(len(BAD)))
        for entry, (_, reason) in zip(found, BAD, strict=True):
            assert reason in entry["reason"], entry
        alone = http.post("/v1/events", content=b"{}\nnot json\n\n", headers={"content-type": "application/x-ndjson"})
        assert alone.status_code == 422 and len(alone.json()["quarantined"]) == 2
        assert num_quarantined(tmp_path) == len(BAD) + 2
        assert f'outcome="quarantined"}} {len(BAD) + 2}.0' in http.get("/metrics").text


def test_ids_are_spelled_as_in_training(tmp_path: Path) -> None:
    store = Memory()
    with client(tmp_path, store) as (http, feedback):
        events = [shown(1, user_id=7, item_id=3.0, values={"genre": 1}), shown(2, user_id="7", item_id="3")]
        assert http.post("/v1/events", json={"events": events}).json()["accepted"] == 2
        until(lambda: feedback.follower.counts().get("outcomes_not_clicked") == 2)
    assert {key for kind, key in store.rows if kind == "user"} == {"7"}
    assert {key for kind, key in store.rows if kind == "item"} == {"3"}


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "not JSON"),
        (b'{"events": 1}', 400, "one key 'events'"),
        (b'{"events": [], "more": 1}', 400, "one key 'events'"),
        (b'{"events": [' + b"1," * MAX_EVENTS + b"1]}", 413, "too many"),
        (b" " * (MAX_BODY + 1), 413, "too large"),
    ],
)
def test_a_body_that_is_none_is_refused(tmp_path: Path, body: bytes, status: int, text: str) -> None:
    with client(tmp_path, Memory()) as (http, _):
        answer = http.post("/v1/events", content=body)
        assert answer.status_code == status and text in answer.json()["error"]
        assert http.get("/v1/events").status_code == 405 and http.get("/nothing").status_code == 404


def test_a_store_that_is_down_loses_nothing(tmp_path: Path) -> None:
    store = Memory()
    store.down = True
    with client(tmp_path, store) as (http, feedback):
        for number in range(5):
            assert http.post("/v1/events", json={"events": [shown(number)]}).status_code == 202
        until(lambda: feedback.follower.push_failures > 1 and feedback.follower.to_push)
        answer = http.get("/healthz")
        assert answer.status_code == 503 and "online store does not take rows" in answer.json()["problems"][0]
        store.down = False
        until(lambda: not feedback.follower.store_down and feedback.follower.counts()["outcomes_not_clicked"] == 5)
        until(lambda: store.watermark > time.time() * 1e6 - 3e6)
        assert "thinktwice_feedback_push_failures_total" in http.get("/metrics").text
    assert stored(store) == replayed(tmp_path)


def test_an_error_that_nobody_thought_of_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The follower says that it is ill, and goes on when it can."""
    import serving.feedback.service as service

    store, real = Memory(), service.play

    def broken(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(service, "play", broken)
    with client(tmp_path, store) as (http, feedback):
        assert http.post("/v1/events", json={"events": [shown(1)]}).status_code == 202
        until(lambda: feedback.follower.error)
        assert "a bug" in http.get("/healthz").json()["problems"][0]
        monkeypatch.setattr(service, "play", real)
        until(lambda: feedback.follower.counts().get("outcomes_not_clicked") == 1)
        until(lambda: http.get("/healthz").status_code == 200)
    assert stored(store) == replayed(tmp_path)


def test_a_disk_error_that_nobody_thought_of_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with client(tmp_path, Memory()) as (http, feedback):

        def broken(_: Any) -> None:
            raise ValueError("a bug")

        monkeypatch.setattr(feedback.log, "append", broken)
        assert http.post("/v1/events", json={"events": [shown(1)]}).status_code == 503
        monkeypatch.undo()
        assert http.post("/v1/events", json={"events": [shown(1)]}).status_code == 202


@pytest.mark.server
def test_a_redis_that_stops_and_dies_loses_nothing(tmp_path: Path) -> None:
    """It hangs, then it is killed, then another one is there, empty: every row is there again."""
    with redis_server.started(tmp_path) as (address, process):
        store_dir = make_store(tmp_path, random_log(40), SCHEMA, address, version="dies")
        store = OnlineStore(store_dir)
        with client(tmp_path / "log", store) as (http, feedback):
            assert http.post("/v1/events", json={"events": [shown(1)]}).status_code == 202
            until(lambda: feedback.follower.counts().get("outcomes_not_clicked") == 1 and not feedback.follower.to_push)
            process.send_signal(signal.SIGSTOP)
            assert http.post("/v1/events", json={"events": [shown(2)]}).status_code == 202
            until(lambda: feedback.follower.hangs)
            assert http.get("/healthz").json()["problems"] == ["the online store does not answer"]
            process.kill()
            process.wait(10)
            until(lambda: feedback.follower.store_down)
            assert http.post("/v1/events", json={"events": [shown(3)]}).status_code == 202
            until(lambda: feedback.follower.counts().get("outcomes_not_clicked") == 3)
            port = address.split(":")[1]
            command = [str(redis_server.binary()), "--port", port, "--bind", "127.0.0.1", "--save", ""]
            again = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
            try:
                until(lambda: not feedback.follower.store_down)
                feedback.close()
                replay_log(tmp_path / "log", store_dir, FeedbackConfig(), check=False, push=True)
                expected = replayed(tmp_path / "log")
                service = read_json(store_dir / "feature_store.json")["feature_service"]
                source = FeastSource(*open_feast(store_dir, service), SCHEMA)
                users = [name for kind, name in expected if kind == "user"]
                found = source.fetch_fields("user_id", [("user_instant", STATE)], users)
                assert [row[0] for row in found] == [expected[("user", name)][1] for name in users]
                assert set(users) == {"u0", "u1"}
                source.close()
            finally:
                again.terminate()
                again.wait(10)
        store.close()


def test_a_service_that_ended_with_a_dead_store_pushes_at_the_next_start(tmp_path: Path) -> None:
    store = Memory()
    store.down = True
    with client(tmp_path, store) as (http, feedback):
        http.post("/v1/events", json={"events": [shown(1), clicked(1)]})
        until(
            lambda: (
                feedback.follower.counts().get("outcomes_clicked", 0)
                + feedback.follower.counts().get("outcomes_clicked_late", 0)
            )
        )
    store.down = False
    with client(tmp_path, store) as (_, feedback):
        until(lambda: ("user", "u1") in store.rows)
    assert stored(store) == replayed(tmp_path)


def test_another_store_gets_every_row(tmp_path: Path) -> None:
    with client(tmp_path, Memory()) as (http, feedback):
        http.post("/v1/events", json={"events": [shown(1)]})
        until(lambda: feedback.follower.counts().get("outcomes_not_clicked"))
    other = Memory("other")
    with client(tmp_path, other):
        until(lambda: ("user", "u1") in other.rows)
    assert stored(other) == replayed(tmp_path)


def test_a_full_disk_refuses_events_and_takes_them_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real = Memory(), os.write

    def full(descriptor: int, data: Any) -> int:
        if str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith(".log"):
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    with client(tmp_path, store) as (http, feedback):
        monkeypatch.setattr(os, "write", full)
        answer = http.post("/v1/events", json={"events": [shown(1)]})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        assert "no space left" in answer.json()["error"]
        assert not http.get("/healthz").json()["ok"]
        assert 'outcome="refused_disk"} 1.0' in http.get("/metrics").text
        monkeypatch.setattr(os, "write", real)
        assert http.post("/v1/events", json={"events": [shown(1)]}).status_code == 202
        until(lambda: feedback.follower.counts().get("outcomes_not_clicked") == 1)
    assert stored(store) == replayed(tmp_path)


def test_backpressure_is_answered_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    log = EventLog(tmp_path)
    real = log.append

    def slow(found: list[Record]) -> None:
        go.wait(60)
        real(found)

    monkeypatch.setattr(log, "append", slow)
    recorder = Recorder(log, FeedbackConfig(queue=3, tick=60), lambda: None)
    event = Impression(request_id="r", item_id="i", at=1.0)
    first = recorder.submit([event])
    until(lambda: not recorder._queue)
    second = recorder.submit([event, event])
    with pytest.raises(OverloadedError, match="3 events wait for the disk: send these events again") as caught:
        recorder.submit([event])
    assert (caught.value.status, caught.value.retry_after) == (429, 1.0)
    go.set()
    assert (first.result(60), second.result(60)) == (1, 2)
    assert recorder.counts == {"accepted": 3, "refused_queue": 1}
    recorder.close()
    with pytest.raises(OverloadedError, match="the service ends"):
        recorder.submit([event])
    log.close()


def test_a_clock_does_not_jump() -> None:
    wall, passed = [10**18], [0]
    clock = SteadyClock(0, lambda: wall[0], lambda: passed[0])
    start, second = clock.now(), 10**9

    def after(seconds: float, jump: float = 0.0) -> int:
        wall[0] += int((seconds + jump) * second)
        passed[0] += int(seconds * second)
        return clock.now() - start

    assert after(1) == 1_000_000
    assert after(1, jump=3600) == 2_100_000 and clock.jumps == 1  # an hour ahead: worked off by a tenth of the time
    assert after(1, jump=-3600) == 3_000_000 and clock.jumps == 2
    before = clock.now()
    assert all(after(0.001, jump=-1000) + start >= before for _ in range(50))
    assert SteadyClock(4_000_000_000_000_000, lambda: 0, lambda: 0).now() == 4_000_000_000_000_000


@pytest.mark.server
def test_kills_at_any_moment_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    """SIGKILL again and again while events come; what was not acknowledged is sent again. The real Redis in the end holds what a
    fresh replay of the log gives, byte for byte."""
    with redis_server.running(tmp_path) as address:
        store_dir = make_store(tmp_path, random_log(40), SCHEMA, address, version="kills")
        log, number = tmp_path / "log", 0
        for round_ in range(3):
            with running(log, store_dir) as (url, process):
                killer = threading.Timer(0.3 + 0.4 * round_, process.send_signal, (signal.SIGKILL,))
                killer.start()
                for _ in range(400):
                    events = [shown(number), shown(number + 1), clicked(number)]
                    try:
                        if send(url, events)[0] != 202:
                            continue
                    except (OSError, http.client.HTTPException):  # killed before or within its answer
                        break
                    number += 2
                killer.join()
                process.wait(30)
        with running(log, store_dir) as (url, process):
            for start in range(0, number, 100):  # at-least-once: all of it once more
                assert send(url, [shown(n) for n in range(start, min(start + 100, number))])[0] == 202
            assert send(url, [shown(number)])[0] == 202
            until(lambda: get(url.replace("/v1/events", "/healthz"))[0] == 200)
            until(lambda: log_status(log).counts["outcomes_not_clicked"] >= number // 2)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        expected = replayed(log)
        source = FeastSource(
            *open_feast(store_dir, read_json(store_dir / "feature_store.json")["feature_service"]), SCHEMA
        )
        for kind, view, key in (
            ("user", "user_instant", "user_id"),
            ("item", "item_instant", "item_id"),
            ("recent", "user_recent", "user_id"),
        ):
            ids = [name for found, name in expected if found == kind]
            states = source.fetch_fields(key, [(view, STATE)], ids)
            assert [row[0] for row in states] == [expected[(kind, name)][1] for name in ids] and ids
        source.close()
        assert replay_log(log, store_dir, FeedbackConfig(), check=True, push=False).different == 0


@pytest.mark.server
def test_a_real_disk_limit_refuses_events(tmp_path: Path, store_dir: Path) -> None:
    """No file may grow beyond 512 KiB: events are refused by then, and those that were acknowledged are in the log."""
    log = tmp_path / "log"
    limit = (
        "import resource, os, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19)); os.execv(sys.argv[1], sys.argv[1:])"
    )
    accepted, statuses = 0, []
    with running(log, store_dir, before=(sys.executable, "-c", limit)) as (url, _):
        for number in range(0, 4000, 100):
            status, answer = send(url, [shown(n) for n in range(number, number + 100)])
            statuses.append(status)
            if status != 202:
                assert status == 503 and answer["retry-after"] == "5", answer
                break
            accepted += 100
    assert statuses[-1] == 503 and accepted
    kept = [record for part in read_all(log) for record in part]
    assert sum(record.kind == "impression" for record in kept) == accepted


def test_a_state_of_another_lateness_or_definition_is_refused_by_name(tmp_path: Path) -> None:
    with client(tmp_path, Memory()):
        pass
    with pytest.raises(FeatureStoreError, match=r"lateness \(in microseconds\) .*'thinktwice feedback replay'"):
        Feedback(tmp_path, SCHEMA, None, FeedbackConfig(lateness=2))
    with pytest.raises(FeatureStoreError, match="counts by another definition than the feature store"):
        Feedback(tmp_path, full_schema(click=3), None, FeedbackConfig())
    EventLog(tmp_path).close()  # it was given back


def test_an_open_store_knows_its_project(store_dir: Path) -> None:
    store = OnlineStore(store_dir)
    assert store.project.startswith("t_") and store.schema == SCHEMA
    store.close()
