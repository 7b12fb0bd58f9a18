"""What feedback is kept for: the champion's store, also after a promotion, or outcomes alone."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from serving.feedback.clicks import write_clicks
from serving.feedback.config import FeedbackConfig
from serving.feedback.event_log import read_all
from serving.feedback.http import problems
from serving.feedback.offline import import_files, log_status, replay_log
from serving.feedback.rules import EventRules
from serving.feedback.service import Feedback
from serving.feedback.target import ChampionFollower, Target, difference, open_target
from tests.feedback.server import get, running_with, send, until
from tests.feedback.stores import full_schema, make_store, random_log
from tests.feedback.test_service import Memory, clicked, client, replayed, shown, stored
from thinktwice.errors import BundleError, FeatureStoreError
from thinktwice.parquet import read_frame
from thinktwice.release.champion import CHAMPION_FILE
from thinktwice.schema import SCHEMA_FILE, LogSchema, parse_schema

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SCHEMA, LOG = full_schema(click=0, no_click=1), random_log(40)
RECORDING = FeedbackConfig(record_only=True, tick=0.05)


def plain_schema() -> LogSchema:
    """The same log without counters."""
    text = SCHEMA.to_yaml()
    return parse_schema(text[: text.index("statistics:")] + "statistics: {}\n", where="test")


def deployed(state: Path, name: str, schema: LogSchema, store: Path | None) -> Path:
    """A version as a deployment leaves it, as the champion."""
    folder = state / "versions" / name
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / SCHEMA_FILE).write_text(schema.to_yaml())
    if store is not None:
        shutil.copytree(store, folder / "feature_store")
    info = {"model_version": name, "bundle_hash": name * 8, "feature_service": "s", "deployed_at": 0.0}
    (folder / CHAMPION_FILE).write_text(json.dumps(info))
    point(state, name)
    return folder


def point(state: Path, name: str) -> None:
    link = state / "champion.new"
    link.symlink_to(Path("versions") / name)
    link.replace(state / "champion")


def pushed(store: Path) -> dict[bytes, bytes]:
    """All values of a SQLite online store."""
    found: dict[bytes, bytes] = {}
    with sqlite3.connect(f"file:{store / 'online.db'}?mode=ro", uri=True) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for key, feature, value in db.execute(f'SELECT entity_key, feature_name, value FROM "{table}"'):
                found[table.encode() + bytes(key) + feature.encode()] = bytes(value)
    db.close()
    return found


def test_another_store_while_the_service_runs_gets_every_row_and_all_that_follows(tmp_path: Path) -> None:
    first, second, third = Memory("first"), Memory("second"), Memory("third")
    with client(tmp_path, first) as (http, feedback):
        http.post("/v1/events", json={"events": [shown(1)]})
        until(lambda: ("user", "u1") in first.rows)
        first.down = True
        for store in (second, third):
            feedback.follower.use(Target(SCHEMA, store))  # type: ignore[arg-type]
            until(lambda store=store: ("user", "u1") in store.rows)
        assert second.closed and not third.closed and not problems(feedback)
        written = second.writes
        http.post("/v1/events", json={"events": [shown(2), clicked(2)]})
        until(lambda: ("user", "u0") in third.rows)
        assert second.writes == written
    assert third.closed and stored(third) == replayed(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("click: 0", "click: 1", "definition of the counters"),
        ("length: 5", "length: 4", "sequences"),
        ("- 7\n", "- 3\n", "statistics of whole days"),
        ("key: item_id", "key: goods_id", "ids"),
    ],
)
def test_what_one_state_cannot_serve_is_named(tmp_path: Path, old: str, new: str, name: str) -> None:
    text = SCHEMA.to_yaml()
    assert old in text
    changed = parse_schema(text.replace(old, new).replace("of: item_id", new.replace("key", "of") if "key" in new else "of: item_id"), where="test")  # fmt: skip
    found = difference(SCHEMA, changed, FeedbackConfig())
    assert name in found and found.count("instead of") >= 1
    assert difference(SCHEMA, SCHEMA, FeedbackConfig()) == ""
    with client(tmp_path, Memory()):
        pass
    with pytest.raises(FeatureStoreError, match="feedback replay"):
        Feedback(tmp_path, changed, None, FeedbackConfig())


def test_what_is_not_kept_may_differ() -> None:
    changed = SCHEMA.model_copy(update={"quarantine_budget": 0.2})
    assert changed != SCHEMA and difference(SCHEMA, changed, FeedbackConfig()) == ""


@pytest.mark.server
def test_a_promotion_needs_no_restart(tmp_path: Path) -> None:
    store, state = make_store(tmp_path / "a", LOG, SCHEMA), tmp_path / "state"
    other = make_store(tmp_path / "b", LOG, full_schema(click=3, no_click=9), version="t-2")
    old = deployed(state, "one", SCHEMA, store)
    with running_with("--log", str(tmp_path / "log"), "--state", str(state)) as (url, process):
        base = url.removesuffix("/v1/events")
        assert send(url, [shown(1), clicked(1)])[0] == 202
        until(lambda: pushed(old / "feature_store") != pushed(store))
        new = deployed(state, "two", SCHEMA, store)  # its values are those of the training
        until(lambda: pushed(new / "feature_store") == pushed(old / "feature_store"))
        assert send(url, [shown(2, user_id="new"), clicked(2)])[0] == 202
        until(lambda: any(b"new" in key for key in pushed(new / "feature_store")))
        assert not any(b"new" in key for key in pushed(old / "feature_store"))

        deployed(state, "three", full_schema(click=3, no_click=9), other)
        why = until(lambda: [p for p in json.loads(get(f"{base}/healthz")[1])["problems"] if "three" in p])
        assert "definition of the counters" in why[0] and "'thinktwice feedback replay'" in why[0]
        assert "thinktwice_feedback_healthy 0.0" in get(f"{base}/metrics")[1]
        assert send(url, [shown(3, user_id="later")])[0] == 202  # recorded all the same
        until(lambda: any(b"later" in key for key in pushed(new / "feature_store")))

        point(state, "two")
        until(lambda: json.loads(get(f"{base}/healthz")[1])["ok"])
        process.terminate()
        _, errors = process.communicate(timeout=60)
    sentences = [" ".join(errors.split())]
    assert "the champion has changed: counters are pushed to" in sentences[0] and "Traceback" not in errors
    assert sentences[0].count("the new champion three gets no counters") == 1
    assert log_status(tmp_path / "log").counts["impressions"] == 3


def test_a_champion_that_cannot_be_read_is_said_once_and_taken_later(tmp_path: Path) -> None:
    store, folder = make_store(tmp_path, LOG, SCHEMA), tmp_path / "next" / "feature_store"
    said: list[str] = []
    taken: list[Target] = []
    answers: list[Any] = [BundleError("champion x cannot be read"), OSError("disk"), folder, folder]

    def champion() -> Path:
        answer = answers.pop(0) if answers else folder
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Path)
        return answer

    follower = ChampionFollower(champion, store, SCHEMA, FeedbackConfig(), taken.append, said.append, every=0.02)
    try:
        until(lambda: "next" in follower.refused or len(said) == 3)
        assert not taken and len(said) == 3
        shutil.copytree(store, folder)
        until(lambda: taken)
        until(lambda: follower.refused == "")
    finally:
        follower.close()
        for target in taken:
            target.close()
    assert len(taken) == 1 and said[-1].endswith(str(folder))


@pytest.mark.server
def test_a_model_without_counters_has_outcomes(tmp_path: Path) -> None:
    schema, state, log = plain_schema(), tmp_path / "state", tmp_path / "log"
    deployed(state, "plain", schema, None)
    place = ("--log", str(log), "--state", str(state), "--record-only")
    now = time.time()
    with running_with(*place) as (url, process):
        assert send(url, [shown(1), clicked(1), clicked(1), shown(2), clicked(7)])[0] == 202
        status, answer = send(
            url, [shown(3, values={"colour": "red"}), {"kind": "click", "request_id": "r", "at": now}]
        )
        assert status == 422 and [bad["index"] for bad in answer["quarantined"]] == [0, 1]
        base = url.removesuffix("/v1/events")
        until(lambda: log_status(log).counts.get("clicks_waiting"))
        assert json.loads(get(f"{base}/healthz")[1])["ok"] and "pushed_rows_total 0.0" in get(f"{base}/metrics")[1]
        text = schema.to_yaml().replace("- name: site\n", "- name: colour\n- name: site\n", 1)
        assert "colour" in text
        deployed(state, "next", parse_schema(text, where="test"), None)  # another model, of a log with one more field
        until(lambda: send(url, [shown(4, values={"colour": "red"})])[0] == 202)
        assert json.loads(get(f"{base}/healthz")[1])["ok"]
        process.terminate()
        process.communicate(timeout=60)
    counts = log_status(log).counts
    assert (counts["impressions"], counts["clicks"], counts["clicks_twice"]) == (3, 1, 1)
    tables, watermark = write_clicks(log, tmp_path / "clicks")
    assert watermark is not None and sum(read_frame(t).height for t in tables) == 3  # what outcomes are joined from


def test_recorded_events_can_be_imported_replayed_and_counted_later(tmp_path: Path) -> None:
    store, bundle = make_store(tmp_path, LOG, SCHEMA), tmp_path / "bundle"
    bundle.mkdir()
    (bundle / SCHEMA_FILE).write_text(plain_schema().to_yaml())
    lines = [shown(1, at=1e9), clicked(1, at=1e9 + 1)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = tmp_path / "log"
    done = import_files(log, bundle, RECORDING, [tmp_path / "events.jsonl"], push=True)
    assert (done.events, done.quarantined) == (2, 0) and done.counts["clicks"] == 1
    assert replay_log(log, bundle, RECORDING, check=True, push=True).different == 0
    target = open_target(bundle, RECORDING)
    assert target.store is None and target.schema == plain_schema()
    with pytest.raises(FeatureStoreError, match=r"another definition .*'thinktwice feedback replay'"):
        Feedback(log, SCHEMA, None, FeedbackConfig())
    replay_log(log, store, FeedbackConfig(), check=False, push=True)
    feedback = Feedback(log, SCHEMA, None, FeedbackConfig())
    assert ("user", "u1") in {(row.kind, row.key) for row in feedback.book.rows()}
    feedback.close()
    assert any(b"u1" in key for key in pushed(store))
    assert [r.values for part in read_all(log) for r in part if r.kind == "impression"] == [{"genre": "a", "sex": "f"}]


def test_a_log_without_counters_names_the_way_to_record() -> None:
    with pytest.raises(FeatureStoreError, match=r"no statistics\.instant.*--record-only"):
        EventRules(plain_schema())
    rules = EventRules(plain_schema(), RECORDING)
    assert {"genre", "sex", "city", "kind", "site"} == set(rules.fields)
