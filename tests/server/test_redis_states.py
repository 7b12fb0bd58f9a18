"""States of counters from a real Redis: what is kept follows every write, and every way to read gives the same."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import redis
from prometheus_client import CollectorRegistry

from serving.config import ServingConfig
from serving.features.feast_source import open_feast_store
from serving.features.lookup import Fetched, KeptItems, Places
from serving.features.open_reader import FeatureConfig
from serving.features.redis_source import RedisSource
from serving.features.redis_tracking import TrackedFields
from serving.open_service import open_service
from serving.service import Service
from tests.data.instant.oracle import Row
from tests.features import redis_server
from tests.feedback.streams import SECOND
from tests.serving.counted import LOG, NOW, SCHEMA, Counted, feed, make_counted
from thinktwice.data.pushed_views import WATERMARK

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Feast keeps its connection open as long as it lives
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ITEMS = ["i", "j", "k", "l", "ü 1", "never seen"]
USERS = ["u", "v", "é", "nobody", None]


@dataclass
class World:
    """Bundles, a fed store, and clients of its Redis."""

    counted: Counted
    client: redis.Redis
    saved: dict[bytes, Any]

    def fill(self) -> None:
        """Put back the features, and the states of NOW."""
        self.client.flushall()
        for key, content in self.saved.items():
            self.client.restore(key, 0, content)

    def source(self) -> RedisSource:
        return RedisSource(open_feast_store(self.counted.store), SCHEMA, states=True)

    def service(self, mode: str = "corrected", **features: Any) -> Service:
        features = {"timeout_ms": 10_000, **features}
        config = ServingConfig(shed=False, access_log=False, features=FeatureConfig(**features))
        return open_service(
            self.counted.bundles[mode],
            config,
            model_name="ctr",
            feature_store=self.counted.store,
            registry=CollectorRegistry(),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("redis-states")
    with redis_server.running(folder) as address:
        counted = make_counted(folder, redis=address, version="redis-states")
        host, port = address.split(":")
        with redis.Redis(host, int(port)) as client:
            feed(counted.store)
            yield World(counted, client, {key: client.dump(key) for key in client.scan_iter()})


@pytest.fixture
def source(world: World) -> Iterator[RedisSource]:
    opened = world.source()
    opened.fetch_request("u", ITEMS, [])  # opens its connections
    assert opened._tracked is not None
    yield opened
    opened.close()


def plain(source: RedisSource, user: str | None, items: list[str], features: list[str]) -> Fetched:
    """Read without anything kept."""
    return source.fetch_request(user, items, features)


def listed(found: Fetched | None) -> Fetched | None:
    """With the states of items as a list, whichever way they were read."""
    if found is None or found.states is None:
        return found
    return replace(found, states=replace(found.states, items=list(found.states.items)))


def drawn(draw: random.Random) -> tuple[str | None, list[str], list[str]]:
    return draw.choice(USERS), draw.sample(ITEMS, draw.randint(0, 6)), draw.sample(ITEMS, draw.choice((0, 0, 2)))


def writes(world: World, source: RedisSource, draw: random.Random) -> None:
    """Change a few hashes in every way that Redis knows."""
    state, watermark = source._item_state[0], source._watermark_field
    for _ in range(draw.randint(0, 3)):
        key = source._key("item", draw.choice(ITEMS))
        content = source._header + draw.randbytes(8)
        match draw.randrange(7):
            case 0 | 1:
                world.client.hset(key, state, content)
            case 2:
                world.client.hdel(key, state)
            case 3:
                world.client.delete(key)
            case 4:
                world.client.pexpire(key, 1)
                time.sleep(0.003)
                world.client.hget(key, state)
            case 5:
                value = source._values.type(int64_val=draw.randrange(1 << 50)).SerializeToString()
                world.client.hset(source._log_key, watermark, value)
            case 6 if draw.random() < 0.3:
                world.client.flushall()


@pytest.mark.parametrize("kept", [2, 1 << 15])
def test_what_is_kept_follows_every_write(world: World, source: RedisSource, kept: int) -> None:
    """Also with the places of the items in catalogues that change and lack some, whose versions then tell what has not changed."""
    draw = random.Random(kept)
    assert source._tracked is not None
    source._tracked._most = kept
    seen: dict[int, object] = {}
    catalogue: dict[str, int] = {}
    for _ in range(300):
        writes(world, source, draw)
        user, items, features = drawn(draw)
        if draw.random() < 0.1:
            catalogue = {item: n for n, item in enumerate(draw.sample(ITEMS, 4))}
        places = Places(catalogue, np.array([catalogue.get(item, -1) for item in items], np.int64))
        found = source.fetch_request_within(user, items, features, 5.0, draw.choice((None, places)))
        assert listed(found) == plain(source, user, items, features)
        assert source._tracked is not None and len(source._tracked._slots) <= max(kept, len(ITEMS)) + 1
        assert found is not None and found.states is not None and isinstance(found.states.items, KeptItems)
        marks = found.states.items.marks
        for item, version, state in zip(items, marks.versions.tolist(), found.states.items, strict=True):
            assert seen.setdefault(version, (item, state)) == (item, state)
    world.fill()


def test_states_that_have_not_changed_are_not_read_again(world: World, source: RedisSource) -> None:
    def reads() -> int:
        return int(world.client.info("commandstats").get("cmdstat_hget", {}).get("calls", 0))

    source.fetch_request_within("u", ITEMS, [], 5.0)
    before = reads()
    for _ in range(5):
        source.fetch_request_within("u", ITEMS, [], 5.0)
    assert reads() == before
    world.client.hset(source._key("item", "j"), "other", "x")
    source.fetch_request_within("u", ITEMS, [], 5.0)
    assert reads() == before + 1


def test_a_change_while_a_request_reads_is_read_again(world: World, source: RedisSource) -> None:
    """The item and the watermark change between the two answers of an exchange; then they change in every exchange."""
    tracked = source._tracked
    assert tracked is not None
    key, answers, changes = source._key("item", "j"), tracked._answers, [1]

    def interrupted(commands: Any, end: float) -> Any:
        out = answers(commands, end)
        if changes[0]:
            changes[0] -= 1
            world.client.hset(key, source._item_state[0], source._header + bytes([changes[0]]))
            tracked._connection.can_read(1.0)
            answers([("PING",)], end)
        return out

    tracked._answers = interrupted  # type: ignore[method-assign]
    assert listed(source.fetch_request_within("u", ITEMS, [], 5.0)) == plain(source, "u", ITEMS, [])
    assert changes == [0]
    changes[0] = 200
    found = source.fetch_request_within("u", ITEMS, [], 5.0)
    assert listed(found) == plain(source, "u", ITEMS, []), "read by the script"
    changes[0] = 0
    world.fill()


def test_threads_share_one_source_while_it_is_written(world: World, source: RedisSource) -> None:
    """Whatever way a request is read, it never has a state older than its watermark says: states are written first."""
    stop, wrong = threading.Event(), []

    def write() -> None:
        number = 0
        state, field = source._item_state[0], source._watermark_field
        while not stop.is_set():
            number += 1
            for item in ITEMS:
                world.client.hset(source._key("item", item), state, source._header + number.to_bytes(8, "big"))
            value = source._values.type(int64_val=number).SerializeToString()
            world.client.hset(source._log_key, field, value)

    def ask() -> None:
        while not stop.is_set():
            found = source.fetch_request_within(None, ITEMS, [], 5.0)
            if found is None or found.states is None or (watermark := found.states.watermark) is None:
                continue
            if any(int.from_bytes((s or b"")[-8:], "big") < watermark < 1 << 40 for s in found.states.items):
                wrong.append(found.states)

    threads = [threading.Thread(target=run) for run in (write, ask, ask, ask)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    world.fill()
    assert not wrong


def test_every_way_to_read_gives_the_same(world: World) -> None:
    """By what is kept, by the script (also after a flush of all scripts), by a pipeline, and without tracking."""
    found: dict[str, list[Fetched | None]] = {}
    asked: list[tuple[str | None, list[str], list[str]]] = [
        ("u", ITEMS, []),
        (None, ITEMS[:2], ITEMS[:2]),
        ("nobody", [], []),
    ]

    def read(name: str, source: RedisSource, call: Callable[..., Fetched | None]) -> None:
        found[name] = [listed(call(*one)) for one in asked]

    source = world.source()
    read("script", source, source.fetch_request)
    read("kept", source, lambda *one: source.fetch_request_within(*one, 5.0))
    world.client.script_flush()
    read("after a flush", source, source.fetch_request)
    assert source._script is not None
    assert source._tracked is not None
    source._tracked.close()
    source._tracked, source._track_from = None, float("inf")
    read("script over an open connection", source, lambda *one: source.fetch_request_within(*one, 5.0))
    world.client.script_flush()
    opened = len(source._open)
    assert source.fetch_request_within("u", ITEMS, [], 5.0) is None, "the script is loaded on another thread"
    assert len(source._open) == opened - 1
    source.close()
    try:
        world.client.execute_command("ACL", "SETUSER", "default", "-@scripting", "-client")
        source = world.source()
        assert source._script is None
        read("pipeline", source, source.fetch_request)
        assert source._tracked is None and source._track_from == float("inf")
        assert source.fetch_request_within("u", ITEMS, [], 5.0) is None
        source.close()
    finally:
        world.client.execute_command("ACL", "SETUSER", "default", "+@all")
    expected = found["script"]
    assert expected[0] is not None and expected[0].states is not None and all(expected[0].states.items[:-1])
    assert {name: fetched for name, fetched in found.items() if fetched != expected} == {}


def test_a_store_that_hangs_breaks_the_connection(world: World) -> None:
    source = world.source()
    source.fetch_request("u", ITEMS, [])
    world.client.execute_command("CLIENT", "PAUSE", 300)
    with pytest.raises(TimeoutError):
        source.fetch_request_within("u", ITEMS, [], 0.02)
    assert source._tracked is None
    world.client.execute_command("CLIENT", "UNPAUSE")
    assert source.fetch_request_within("u", ITEMS, [], 5.0) is None, "connecting belongs on another thread"
    expected = plain(source, "u", ITEMS, [])
    assert source._tracked is not None
    assert listed(source.fetch_request_within("u", ITEMS, [], 5.0)) == expected
    source.close()


def _ask(service: Service, items: list[str]) -> Any:
    body = orjson.dumps({"instances": [{"user_id": "u", "candidates": items, "context": {"timestamp": NOW / 1e6}}]})
    reply = service.answer(body, {})
    assert reply.status == 200, reply.body
    return orjson.loads(reply.body)["predictions"][0]


@pytest.mark.parametrize("mode", ["corrected", "retrieve"])
def test_readers_agree_on_items_pushed_after_the_start(world: World, mode: str) -> None:
    """Outcomes of an item that the snapshot lacks and of one that it has, pushed after the readers were opened."""
    services = [world.service(mode, reader=reader) for reader in ("snapshot", "redis", "feast")]
    asked = ["pushed later", "i", "never seen"]
    before = [_ask(service, asked) for service in services]
    more = [
        Row(NOW + n * SECOND, n % 2 == 0, "u", item, ("a", "a"), ("x", "f"))
        for n, item in enumerate(("pushed later", "i", "pushed later"))
    ]
    feed(world.counted.store, [*LOG, *more], NOW + 3600 * SECOND)
    request = {"user_id": "u", "candidates": asked, "context": {"timestamp": NOW / 1e6 + 3600}}
    after = []
    for service in services:
        source = service.scorer.reader.source._source  # type: ignore[union-attr]
        source._watermark_read = -1e9  # half a second passes
        reply = service.answer(orjson.dumps({"instances": [request]}), {})
        after.append(orjson.loads(reply.body)["predictions"][0])
        service.close()
    for answers in (before, after):
        assert [a["counters"] for a in answers] == ["used"] * 3
        assert answers[0]["items"] == answers[1]["items"] == answers[2]["items"]
    assert [item["cold"] for item in before[0]["items"]] == [True, False, True]
    for now, then in zip(after[0]["items"], before[0]["items"], strict=True):
        assert now["probability"] != then["probability"] and now["corrected"] and then["corrected"]
    world.fill()


def test_a_restarted_server_has_no_old_states(tmp_path: Path) -> None:
    """Killed under requests of three threads, down for a while, back empty, and filled with other states."""
    with redis_server.started(tmp_path) as (address, process):
        counted = make_counted(tmp_path, redis=address, version="restarted")
        host, port = address.split(":")
        client = redis.Redis(host, int(port))
        world = World(counted, client, {key: client.dump(key) for key in client.scan_iter()})
        feed(counted.store)
        service = world.service(timeout_ms=500)
        asked, stop, seen = ["i", "j", "k"], threading.Event(), []
        old = _ask(service, asked)

        def traffic() -> None:
            while not stop.is_set():
                answer = _ask(service, asked)
                seen.append((answer["counters"], tuple(item["probability"] for item in answer["items"])))

        threads = [threading.Thread(target=traffic) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            _until(lambda: len(seen) > 50)
            process.kill()
            process.wait(10)
            _until(lambda: seen[-1][0] == "failed")
            with redis_server.started(tmp_path, int(port)):
                _until(lambda: seen[-1][0] == "without_watermark")
                world.fill()
                feed(counted.store, LOG[:100], NOW)
                fresh = world.service(timeout_ms=500)
                expected = _ask(fresh, asked)
                fresh.close()
                new = ("used", tuple(item["probability"] for item in expected["items"]))
                _until(lambda: seen[-1] == new)
                filled = len(seen)
                _until(lambda: len(seen) > filled + 50)
                stop.set()
                for thread in threads:
                    thread.join()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            service.close()
            client.close()
    assert set(seen[filled:]) == {new}
    first = ("used", tuple(item["probability"] for item in old["items"]))
    assert first != new and seen[0] == first
    after_kill = next(n for n, one in enumerate(seen) if one[0] == "failed")
    assert first not in seen[after_kill + 3 :], "nothing from before the restart"


def test_only_keys_of_items_and_of_the_log_have_names(world: World, source: RedisSource) -> None:
    for name in (*ITEMS, ""):
        assert source._state_name(source._key("item", name)) == name
    assert source._state_name(source._key("user", "i")) is None
    assert source._state_name(source._log_key) == ("log",)
    assert source._state_name(b"") is None and source._state_name(b"\xff" * 80) is None
    assert WATERMARK and isinstance(source._tracked, TrackedFields)


def _until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)
