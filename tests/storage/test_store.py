"""One interface: the same answers from a folder and from two implementations of S3."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.storage.servers import SERVERS, Bucket, environment
from thinktwice.errors import StorageError
from thinktwice.storage.location import is_remote, is_safe_key, parse_location
from thinktwice.storage.open import open_store
from thinktwice.storage.settings import S3Settings
from thinktwice.storage.store import Entry, Store, read_all

pytestmark = pytest.mark.server

SMALL_PARTS = S3Settings(part_bytes=5 << 20, read_bytes=1 << 19)


@pytest.fixture(scope="module", params=["folder", *sorted(SERVERS)])
def where(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder on this machine, or a bucket of a server, which the environment leads to."""
    if request.param == "folder":
        yield str(tmp_path_factory.mktemp("folder") / "a b#?ü")
        return
    with (
        SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as address,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment(address).items():
            patch.setenv(name, value)
        yield Bucket(address, f"stores-{request.param}", request.param).uri


_numbers = itertools.count(1)


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    with open_store(f"{where}/{next(_numbers)}", SMALL_PARTS) as opened:
        yield opened


def listed(store: Store) -> list[Entry]:
    """All entries, without the version of their content."""
    return [entry._replace(version="") for entry in store.entries()]


def test_an_empty_store(store: Store) -> None:
    assert list(store.entries()) == store.folders() == []
    with pytest.raises(StorageError, match="nothing"), store.open("nothing"):
        raise AssertionError("opened")


def test_what_is_written_is_listed_and_read(store: Store, source: Path) -> None:
    for key in ("b", "a/c", "a/b/d", "a.b", "z/ü x"):
        assert store.put_if_absent(key, source)
    assert listed(store) == [Entry(key, 7) for key in sorted(["b", "a/c", "a/b/d", "a.b", "z/ü x"])]
    assert all(store.entry(entry.key) == entry for entry in store.entries())
    assert store.entry("a") is store.entry("none") is None
    assert [entry.key for entry in store.entries("a/")] == ["a/b/d", "a/c"]
    assert store.folders() == ["a", "z"]
    assert read_all(store, "z/ü x", 7) == b"content"
    with pytest.raises(StorageError, match="more than 6 bytes"):
        read_all(store, "b", 6)


def test_nothing_is_overwritten(store: Store, source: Path) -> None:
    assert store.put_if_absent("key", source)
    source.write_bytes(b"other")
    assert not store.put_if_absent("key", source)
    assert read_all(store, "key", 100) == b"content"
    assert [entry.key for entry in store.entries()] == ["key"]


@pytest.mark.parametrize("size", [0, 1, (5 << 20) - 1, 5 << 20, (5 << 20) + 1, (11 << 20) + 3])
def test_every_size_comes_back(store: Store, tmp_path: Path, size: int) -> None:
    """Around the size of a part, over which an object is uploaded in parts."""
    content = os.urandom(size)
    path = tmp_path / "content"
    path.write_bytes(content)
    assert store.put_if_absent("big", path)
    assert read_all(store, "big", size) == content
    assert not store.put_if_absent("big", path)
    assert listed(store) == [Entry("big", size)]


def test_a_file_object_seeks(store: Store, tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 5)
    path = tmp_path / "content"
    path.write_bytes(content)
    store.put_if_absent("big", path)
    with store.open("big") as file:
        assert file.seek(-5, os.SEEK_END) == 1 << 20
        assert file.read() == content[-5:] and file.read() == b""
        file.seek(1000)
        assert file.read(10) == content[1000:1010] and file.tell() == 1010
        file.seek(10, os.SEEK_CUR)
        assert file.read(3) == content[1020:1023]
        file.seek(0)
        assert file.read() == content


def test_a_parquet_file_is_read_in_place(store: Store, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"x": list(range(1000))})
    pq.write_table(table, tmp_path / "x.parquet")
    store.put_if_absent("x.parquet", tmp_path / "x.parquet")
    with store.open("x.parquet") as file:
        assert pq.read_table(file).equals(table)


@pytest.mark.parametrize("size", [10, 4 << 20])
def test_of_many_writers_exactly_one_wins(where: str, tmp_path: Path, size: int) -> None:
    """Each with a connection and a content of its own, all at once."""
    if "moto" in where:
        pytest.skip("moto checks the condition and writes the object in two steps")
    number, writers = next(_numbers), 4
    barrier, won = threading.Barrier(writers), []

    def write(writer: int) -> None:
        path = tmp_path / f"writer-{writer}"
        path.write_bytes(bytes([writer]) * size)
        with open_store(f"{where}/race-{number}", SMALL_PARTS) as store:
            barrier.wait(60)
            if store.put_if_absent("key", path):
                won.append(writer)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_store(f"{where}/race-{number}") as store:
        content = read_all(store, "key", size)
    assert won == [content[0]] and content == bytes([content[0]]) * size


KEYS = st.lists(
    st.text(
        st.characters(codec="utf-8", categories=("L", "N", "P", "S"), exclude_characters="/\\"), min_size=1, max_size=8
    ),
    min_size=1,
    max_size=3,
).map("/".join)


@given(KEYS)
@settings(max_examples=60)
def test_a_safe_key_names_a_file_below_the_folder(key: str) -> None:
    if is_safe_key(key):
        path = Path("/base", key)
        assert path.is_relative_to("/base") and ".." not in path.parts and path.relative_to("/base").as_posix() == key


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", ".", "a\\b", "a\nb", "a\x00", "../../etc"]
)
def test_a_key_that_leaves_the_folder_is_refused(tmp_path: Path, source: Path, key: str) -> None:
    assert not is_safe_key(key)
    with open_store(tmp_path / "store") as store, pytest.raises(StorageError, match="not a file name"):
        store.put_if_absent(key, source)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3:///a",
        "https://a/b",
        "s3://bucket/x?y=1",
        "s3://bucket/x#y",
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "s3://b u/x",
        "s3://user:pass@bucket/x",
        "s3://bucket/a\nb",
        " s3://bucket/a",
        "s3://[::1/x",
        "gs://bucket/x",
        "s3://bucket/./a",
        "S4://bucket",
    ],
)
def test_a_location_that_is_none(uri: str) -> None:
    with pytest.raises(StorageError, match="s3://BUCKET/FOLDER"):
        parse_location(uri)


@given(
    parts=st.lists(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]*", fullmatch=True), max_size=4),
    slash=st.sampled_from(["", "/", "//"]),
    scheme=st.sampled_from(["s3", "minio"]),
)
def test_locations_are_written_with_or_without_slashes(parts: list[str], slash: str, scheme: str) -> None:
    place = parse_location(f"{scheme}://bucket/" + "/".join(parts) + slash)
    assert place.prefix == "".join(f"{part}/" for part in parts)
    assert place.uri == "s3://bucket/" + place.prefix
    assert is_remote(place.uri) and parse_location(place.uri) == place


@pytest.mark.parametrize("path", ["/a/b", "a", "./s3:/x", "C:\\x", "x/s3://y", "~"])
def test_a_path_is_not_remote(path: str) -> None:
    assert not is_remote(path)


@given(st.text(max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_location_or_refused(text: str) -> None:
    try:
        place = parse_location("s3://" + text)
    except StorageError:
        return
    assert place.prefix == "" or is_safe_key(place.prefix.rstrip("/"))


def test_a_killed_writer_of_a_folder_leaves_nothing_that_counts(tmp_path: Path, source: Path) -> None:
    """Killed by the kernel between writing aside and the link."""
    process = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path / "store", source))
    process.start()
    process.join()
    assert process.exitcode == -9
    with open_store(tmp_path / "store") as store:
        assert len(list((tmp_path / "store" / "a").iterdir())) == 1, "the unfinished file"
        assert list(store.entries()) == []
        assert store.put_if_absent("a/key", source)
        assert [entry.key for entry in store.entries()] == ["a/key"]


def _write_and_die(folder: Path, source: Path) -> None:
    import signal

    from thinktwice.storage import local

    local.os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[attr-defined]
    with open_store(folder) as store:
        store.put_if_absent("a/key", source)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("x")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "store" / "file").symlink_to(tmp_path / "secret" / "file")
    with open_store(tmp_path / "store") as store:
        assert list(store.entries()) == store.folders() == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("x")
    with open_store(tmp_path / "file") as store, pytest.raises(StorageError, match="cannot be written"):
        store.put_if_absent("key", source)


def test_the_marker_of_a_folder_is_not_a_file(bucket: Bucket) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key="a/", Body=b"")
    with open_store(f"{bucket.uri}/a") as store:
        assert list(store.entries()) == []
    with closing(bucket.client):
        pass


def test_boto3_is_loaded_for_s3_alone(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from thinktwice.storage.open import open_store; import thinktwice.release.model_store\n"
        f"with open_store({str(tmp_path)!r}) as store: list(store.entries())\n"
        "print(sorted({'boto3', 'botocore'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_boto3_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] in ("boto3", "botocore")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "thinktwice.storage.s3", raising=False)
    monkeypatch.delitem(sys.modules, "thinktwice.storage.s3_faults", raising=False)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StorageError, match=r"thinktwice\[s3\]"), open_store("s3://bucket/x"):
        raise AssertionError("opened")
