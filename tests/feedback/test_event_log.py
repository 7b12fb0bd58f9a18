"""The durable log: what was acknowledged is there after any kill, and damage is never read over."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.feedback.event_log import START, EventLog, Position, line_of, read, read_all, segment_file
from serving.feedback.records import Record
from thinktwice.errors import DataError, ResourceError, ServerError

records = st.builds(
    Record,
    kind=st.sampled_from(("impression", "click", "tick", "start")),
    at=st.integers(0, 2**50),
    request_id=st.text(st.characters(codec="utf-8"), max_size=8),
    item_id=st.none() | st.text(st.characters(codec="utf-8"), max_size=8),
    user_id=st.none() | st.text(st.characters(codec="utf-8"), max_size=8),
    time=st.integers(0, 2**50),
    values=st.dictionaries(st.sampled_from(("a", "b")), st.none() | st.text(max_size=3).filter(str.isascii)),
)


def some(number: int) -> list[Record]:
    return [Record("click", 1000 + n, f"r{n}", "i\n", None, 7) for n in range(number)]


def everything(folder: Path) -> list[Record]:
    return [r for part in read_all(folder) for r in part]


@settings(max_examples=50)
@given(parts=st.lists(st.lists(records, min_size=1, max_size=4), max_size=6), size=st.sampled_from((1, 200, 10**6)))
def test_every_record_comes_back(
    parts: list[list[Record]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("log")
    for part in parts:
        log = EventLog(folder, segment_bytes=size)
        log.append(part)
        log.close()

    def kept(r: Record) -> Record:
        """A kind keeps its own fields alone."""
        if r.kind not in ("impression", "click"):
            return Record(r.kind, r.at)
        if r.kind == "click":
            return Record("click", r.at, r.request_id, r.item_id, None, r.time)
        return Record("impression", r.at, r.request_id, r.item_id, r.user_id, r.time, r.values or {})

    assert everything(folder) == [kept(r) for part in parts for r in part]


@settings(max_examples=100)
@given(cut=st.integers(1, 400), garbage=st.binary(max_size=40), segments=st.booleans())
def test_a_torn_end_is_moved_aside(
    cut: int, garbage: bytes, segments: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The last bytes of the log are lost, and anything may stand in their place."""
    folder = tmp_path_factory.mktemp("log")
    log = EventLog(folder, segment_bytes=150 if segments else 10**6)
    for record in some(6):
        log.append([record])
    last = segment_file(folder, log.end.segment)
    log.close()
    before, data = everything(folder), last.read_bytes()
    whole = data[: max(0, len(data) - cut)]
    last.write_bytes(whole + garbage)
    good = [line for line in whole.splitlines(keepends=True) if line.endswith(b"\n")]
    again = EventLog(folder)
    again.append([Record("tick", 5000)])
    again.close()
    kept = len(before) - len(data.splitlines()) + len(good)
    assert everything(folder) == [*before[:kept], Record("tick", 5000)]
    rest = whole[len(b"".join(good)) :] + garbage
    assert again.torn == len(rest)
    assert b"".join(path.read_bytes() for path in folder.glob("torn-*.bin")) == rest


def test_damage_before_good_lines_is_refused(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(some(5))
    log.close()
    path = segment_file(tmp_path, 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"events-0000000000\.log is damaged at byte \d+"):
        EventLog(tmp_path)
    with pytest.raises(DataError, match="is damaged at byte"):
        everything(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    log = EventLog(tmp_path, segment_bytes=1)
    for record in some(3):
        log.append([record])
    log.close()
    segment_file(tmp_path, 1).unlink()
    for use in (EventLog, everything):
        with pytest.raises(DataError, match=r"lacks events-0000000001\.log: restore the file"):
            use(tmp_path)


def test_the_clock_of_the_log_goes_on_behind_its_last_record(tmp_path: Path) -> None:
    log = EventLog(tmp_path, segment_bytes=1)
    log.append(some(2))
    log.close()
    again = EventLog(tmp_path, segment_bytes=1)
    assert again.last_at == 1001
    again.close()
    segment_file(tmp_path, 1).touch()  # killed when it had begun a new file
    empty = EventLog(tmp_path)
    assert (empty.last_at, empty.end) == (1001, Position(1, 0))
    empty.close()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    with pytest.raises(ServerError, match="in use by another process"):
        EventLog(tmp_path)
    log.close()
    EventLog(tmp_path).close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_leaves_nothing_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    log = EventLog(tmp_path)
    log.append(some(2))
    real, calls = os.write, []

    def half(descriptor: int, data: memoryview) -> int:
        calls.append(1)
        if len(calls) == 1:
            return real(descriptor, bytes(data)[:17])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(ResourceError, match="no space left" if number == errno.ENOSPC else "cannot be written"):
        log.append([Record("tick", 2000)])
    assert everything(tmp_path) == some(2) and not segment_file(tmp_path, 0).read_bytes().count(b"tick")
    monkeypatch.undo()
    log.append([Record("tick", 3000)])
    log.close()
    assert everything(tmp_path) == [
        *(Record("click", 1000 + n, f"r{n}", "i\n", None, 7) for n in range(2)),
        Record("tick", 3000),
    ]


def test_reading_stops_at_a_position(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(some(1))
    middle = log.end
    log.append(some(3))
    log.close()
    found, end = read(tmp_path, START, middle)
    assert (found, end) == (some(1), middle)
    assert read(tmp_path, middle, middle) == ([], middle)
    pieces, place = [], START
    while True:
        part, place = read(tmp_path, place, size=1)
        if not part:
            break
        pieces += part
    assert pieces == some(1) + some(3)
    assert line_of(some(1)[0]).count(b"\n") == 1
