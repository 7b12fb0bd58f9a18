"""Lookups over a connection that is open already: the same rows, and back in time whatever the store does."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

from feature_repo.store import build
from serving.features import redis_values
from serving.features.feast_source import open_feast
from serving.features.redis_source import MAX_SMALL_READ, OPEN, RedisSource
from serving.features.redis_values import StoredValues
from tests.features import redis_server
from tests.serving.small import FEATURE_SERVICE, MODEL_VERSION, SCHEMA
from thinktwice.data.feature_tables import table_specs
from thinktwice.release.feature_store import REDIS_ADDRESS
from thinktwice.schema.numbers import number
from thinktwice.schema.values import spell

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Feast keeps its connection open as long as it lives
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextmanager
def half_an_answer() -> Iterator[int]:
    """The port of a server that answers a greeting, and half of any other question."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(b"*2\r\n$2\r\nab" if b"HMGET" in data else b"+OK\r\n" * data.count(b"CLIENT"))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
    thread.join(5.0)


def test_an_open_connection(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server.started(tmp_path) as (address, process):
        monkeypatch.setenv(REDIS_ADDRESS, address)
        build(state.parent / "clean", tmp_path / "store", feature_version=MODEL_VERSION, online="redis")
        feast, _ = open_feast(tmp_path / "store", FEATURE_SERVICE)
        with closing(RedisSource(feast, SCHEMA)) as source:
            assert source.fetch_within("user", ["u1"], 5.0) is None, "nothing is connected yet"
            for _ in range(OPEN + 2):
                whole = source.fetch("user", ["u1", "nobody"])
            assert len(source._open) == OPEN
            assert not whole[0].cold and whole[1].cold
            assert source.fetch_within("user", ["u1", "nobody"], 5.0) == whole
            assert source.fetch_within("item", ["i1"], 5.0) == source.fetch("item", ["i1"])
            many = [f"i{n}" for n in range(MAX_SMALL_READ + 1)]
            assert source.fetch_within("item", many, 5.0) is None
            users = [spec for spec in table_specs(SCHEMA) if spec.entity == "user"]
            names = [(spec.name, name) for spec in users for name in spec.features]
            asked = users[0].key, names, ["u1", "nobody"]
            fields = source.fetch_fields(*asked)
            assert fields == source.fetch_fields_within(*asked, 5.0) == [list(row.values.values()) for row in whole]
            assert source.fetch_fields_within(*asked[:2], many, 5.0) is None
            assert len(source._open) == OPEN

            process.send_signal(signal.SIGSTOP)
            with pytest.raises(TimeoutError):
                source.fetch_within("user", ["u1"], 0.05)
            assert len(source._open) == OPEN - 1, "what comes late must not answer the next question"
            process.send_signal(signal.SIGCONT)
            assert source.fetch_within("user", ["u1", "nobody"], 5.0) == whole

            process.terminate()
            process.wait(10)
            for left in range(OPEN - 1, 0, -1):
                assert len(source._open) == left
                assert source.fetch_within("user", ["u1"], 5.0) is None
            assert source._open == []

            with half_an_answer() as port:
                source._client.connection_pool.connection_kwargs["port"] = port
                source._connect_one()
                assert source.fetch_within("user", ["u1"], 5.0) is None, "the rest is not waited for"
                assert source._open == []

            source._connect_one()  # nobody listens there any more
            assert source._open == []
            assert source._open_from > time.monotonic()


def test_a_float32_of_a_store_is_the_number_that_was_written() -> None:
    values = StoredValues(Value)
    found = values.decoded(values.type(float_val=0.2).SerializeToString())
    assert (spell(found), number(found)) == ("0.2", 0.2)
    assert values.decoded(values.type(double_val=0.2).SerializeToString()) == 0.2


def test_kept_values_are_those_that_were_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal numbers of several types, missing and long values and a list, again and again, with little room."""
    monkeypatch.setattr(redis_values, "KEPT", 4)
    values = StoredValues(Value)
    contents: list[tuple[str, Any]] = [("int64", 1), ("double", 1.0), ("bool", True), ("string", "1"), ("bytes", b"1")]
    contents.append(("string", "x" * 500))
    stored = [(values.type(**{f"{kind}_val": value}).SerializeToString(), value) for kind, value in contents]
    stored.append((values.type().SerializeToString(), None))
    numbers = values.type()
    numbers.int64_list_val.val.extend([1, 2])
    for _ in range(3):
        for raw, value in (*stored, *stored[::-1]):
            found = values.decoded(raw)
            assert (type(found), found) == (type(value), value)
        for second in range(9):
            assert values.seconds(Timestamp(seconds=second, nanos=500_000_000).SerializeToString()) == second + 0.5
        found = values.decoded(numbers.SerializeToString())
        assert found == [1, 2]
        found.append(3)  # a reader changes its list
        assert len(values._values) <= 4 and len(values._seconds) <= 4


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000])
def test_the_header_precedes_the_content(size: int) -> None:
    values = StoredValues(Value)
    assert values.header(size) + b"\xff" * size == values.type(bytes_val=b"\xff" * size).SerializeToString()
