"""The durable event log: lines with checksums in numbered files, appended and flushed to disk before an event is acknowledged.

A line is the CRC-32 of the rest in eight hex digits, a space, and a record as JSON. A partial line that a kill or a power failure left at
the end of the last file is moved aside when the log is opened. An invalid line followed by a valid one is damage, and is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from serving.feedback.records import Record, from_json, to_json
from thinktwice.errors import DataError, ResourceError, ServerError
from thinktwice.files import full_disk_named

SEGMENT_BYTES = 64 << 20  # size after which a new file is started
READ_BYTES = 1 << 20  # bytes per read
LONGEST_LINE = 256 << 10  # bytes; an accepted event is far shorter
_NAME = re.compile(r"events-([0-9]{10})\.log")
Parsed = TypeVar("Parsed", Record, bytes)
MODE = 0o640  # by the group only: the log contains user ids


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """A position between two records: number of the file and byte offset in it."""

    segment: int = 0
    offset: int = 0


START = Position()


def line_of(record: Record) -> bytes:
    """The line of a record in the log."""
    body = to_json(record)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _body(line: bytes) -> bytes | None:
    """The JSON of a line, None if the line is invalid."""
    if len(line) < 10 or line[8:9] != b" " or not line.endswith(b"\n"):
        return None
    body = line[9:-1]
    try:
        return body if int(line[:8], 16) == zlib.crc32(body) else None
    except ValueError:
        return None


def _parsed(line: bytes) -> Record | None:
    """The record of a line, None if the line is invalid."""
    try:
        return None if (body := _body(line)) is None else from_json(body)
    except ValueError:
        return None


def segments(folder: Path) -> list[int]:
    """Numbers of the files of a log, in ascending order."""
    matches = (_NAME.fullmatch(path.name) for path in folder.glob("events-*.log"))
    return sorted(int(name[1]) for name in matches if name)


def segment_file(folder: Path, number: int) -> Path:
    return folder / f"events-{number:010d}.log"


def read(
    folder: Path, position: Position, until: Position | None = None, size: int = READ_BYTES
) -> tuple[list[Record], Position]:
    """Read about ``size`` bytes of records from a position on. Returns them and the position after them; none at the end of the log.

    Args:
        until: position at which to stop. Without it a partial last line is ignored.

    Raises:
        DataError: a file of the log is missing, or a line is damaged.
    """
    return _read(folder, position, until, size, _parsed)


def read_file(folder: Path, number: int) -> Iterator[list[bytes]]:
    """The JSON of every record in one file of a log, checked and not parsed, in batches.

    Raises:
        DataError: this file or the next one is missing, or a line is damaged.
    """
    position = Position(number)
    while True:
        bodies, position = _read(folder, position, None, READ_BYTES, _body)
        if not bodies or position.segment != number:
            return
        yield bodies


def _read(
    folder: Path, position: Position, until: Position | None, size: int, parse: Callable[[bytes], Parsed | None]
) -> tuple[list[Parsed], Position]:
    number, offset = position.segment, position.offset
    while True:
        path = segment_file(folder, number)
        end = until.offset if until is not None and until.segment == number else None
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size if end is None else max(0, min(size, end - offset)))
                if data and not data.endswith(b"\n"):
                    data += file.readline(LONGEST_LINE)
        except FileNotFoundError:
            if number in (0, position.segment) and not segments(folder):
                return [], position
            raise DataError(f"the event log {folder} lacks {path.name}: restore the file, every event counts") from None
        later = bool(until is not None and until.segment > number) or segment_file(folder, number + 1).exists()
        lines = data.splitlines(keepends=True)
        records: list[Parsed] = []
        for index, line in enumerate(lines):
            if (record := parse(line)) is None:
                if index == len(lines) - 1 and not later and until is None:
                    break  # partial line
                raise DataError(_damaged(path, offset))
            records.append(record)
            offset += len(line)
        if records:
            return records, Position(number, offset)
        if not later and max(segments(folder)) <= number:
            return [], Position(number, offset)
        number, offset = number + 1, 0


def read_all(folder: Path, position: Position = START, until: Position | None = None) -> Iterator[list[Record]]:
    """All records from a position on, in batches."""
    while True:
        records, position = read(folder, position, until)
        if not records:
            return
        yield records


def _damaged(path: Path, offset: int) -> str:
    return (
        f"the event log {path} is damaged at byte {offset} (the line does not fit its checksum): restore the file from a copy, "
        "what follows the damage cannot be counted without it"
    )


class EventLog:
    """The only writer of a log.

    Args:
        folder: created if it does not exist.

    Attributes:
        end: position after the last durable record.
        last_at: ``at`` of that record, 0 in an empty log.
        torn: bytes that were moved aside when the log was opened.

    Raises:
        ServerError: another process has opened this log.
        DataError: a file of the log is damaged.
        ResourceError: the log cannot be written.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder, self._segment_bytes = folder, segment_bytes
        with _writable(folder):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ServerError(
                f"the event log {folder} is in use by another process: send events to that one, or stop it"
            ) from None
        try:
            with _writable(folder):
                self.torn, self.last_at = 0, 0
                self.end = self._repaired()
                self._file = self._opened(self.end.segment)
        except BaseException:
            self._lock.close()
            raise
        self._clean = True  # whether the file ends at `end`

    def append(self, records: Sequence[Record]) -> None:
        """Write records and flush them to disk. Either all are durable, or an error is raised and none is in the log.

        Raises:
            ResourceError: the disk is full or cannot be written. The next call may succeed.
        """
        data = b"".join(map(line_of, records))
        with _writable(self.folder):
            if not self._clean:
                self._cut()
            if self.end.offset and self.end.offset + len(data) > self._segment_bytes:
                self._next_segment()
            self._clean = False
            try:
                self._write(data)
            except OSError:
                with contextlib.suppress(OSError):  # if it fails, it is repeated before the next write
                    self._cut()
                raise
        self._clean = True
        self.end = Position(self.end.segment, self.end.offset + len(data))
        self.last_at = records[-1].at

    def close(self) -> None:
        """Close the log and release its lock."""
        self._file.close()
        self._lock.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file.fileno(), view) :]
        os.fsync(self._file.fileno())

    def _cut(self) -> None:
        """Remove the data of a failed write."""
        os.ftruncate(self._file.fileno(), self.end.offset)
        os.fsync(self._file.fileno())
        self._clean = True

    def _opened(self, number: int) -> BinaryIO:
        path = segment_file(self.folder, number)
        created = not path.exists()
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, MODE), "ab", buffering=0)
        if created:
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return file

    def _next_segment(self) -> None:
        number = self.end.segment + 1
        file = self._opened(number)
        self._file.close()
        self._file, self.end = file, Position(number, 0)

    def _repaired(self) -> Position:
        """The end of the log, after moving a partial line aside."""
        numbers = segments(self.folder)
        if not numbers:
            return START
        if numbers != list(range(len(numbers))):
            missing = min(set(range(numbers[-1])) - set(numbers))
            raise DataError(
                f"the event log {self.folder} lacks {segment_file(self.folder, missing).name}: restore the file, every event counts"
            )
        path = segment_file(self.folder, numbers[-1])
        valid_end = offset = 0
        bad_at: int | None = None
        with path.open("rb") as file:
            for line in file:
                if (record := _parsed(line)) is None:
                    bad_at = offset if bad_at is None else bad_at
                elif bad_at is not None:
                    raise DataError(_damaged(path, bad_at))
                else:
                    valid_end, self.last_at = offset + len(line), record.at
                offset += len(line)
        if valid_end < offset:
            self._set_aside(path, valid_end)
            self.torn = offset - valid_end
        if not valid_end and numbers[-1]:  # the process ended right after it created this file
            records, position = [], Position(numbers[-1] - 1)
            while True:
                batch, position = read(self.folder, position, Position(numbers[-1], 0))
                if not batch:
                    break
                records = batch
            self.last_at = records[-1].at if records else 0
        return Position(numbers[-1], valid_end)

    def _set_aside(self, path: Path, valid_end: int) -> None:
        with path.open("r+b") as file:
            file.seek(valid_end)
            partial = file.read()
            aside = self.folder / f"torn-{path.stem}-{valid_end}.bin"
            aside.write_bytes(partial)
            file.truncate(valid_end)
            os.fsync(file.fileno())


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        with full_disk_named(folder):
            yield
    except OSError as error:
        raise ResourceError(
            f"the event log {folder} cannot be written ({error.strerror or error}): make the folder writable for this user"
        ) from error
