"""The files that the paths of a user's own log name: files, folders and patterns, in one format.

Several paths are one text with a path per line, as ``--path`` given several times is passed on. A pattern (``logs/2024-*.csv``) is
only taken as one if no file has that very name.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from thinktwice.data.reading import SNAPSHOT_FILE, is_object, need_path, readable
from thinktwice.data.sources.file_kind import FileKind, kind_of
from thinktwice.data.sources.parts import (
    CODECS,
    ENDINGS,
    NO_DATA,
    counted,
    first_named,
    listed,
    natural,
    partition_key,
    refuse_table,
    walk,
)
from thinktwice.errors import DataError
from thinktwice.storage.object_path import AnyPath, Buckets, ObjectPath, has_magic

Format = Literal["parquet", "delimited", "json lines"]
WHAT = "your log: a parquet, CSV, TSV or JSON lines file, a folder of them, or a pattern such as 'logs/*.csv', here or at s3://BUCKET/"
TEXT_ENDINGS = frozenset({"csv", "tsv", "tab", "psv", "txt", "jsonl", "ndjson", "json"})
SEPARATOR = "\n"  # between two paths
CLEAN_INFO, QUARANTINE_INFO = "clean.json", "quarantine.json"  # in the folders of a validation


@dataclass(frozen=True)
class LogFiles:
    """``files`` in reading order -> their names in messages; ``partitions`` as in :class:`~thinktwice.data.sources.parts.Parts`."""

    format: Format
    files: dict[AnyPath, str]
    left_out: dict[str, str] = field(default_factory=dict)
    partitions: dict[AnyPath, tuple[str, ...]] = field(default_factory=dict)


def joined(paths: Sequence[str]) -> str:
    """Several paths as one text."""
    for path in paths:
        if SEPARATOR in path:
            raise DataError(f"path {path!r} contains a line break: rename the file")
    return SEPARATOR.join(paths)


def expanded(text: str) -> tuple[AnyPath, ...]:
    """The paths in a text, with patterns replaced by the names that match, each once, patterns in natural order.

    Raises:
        DataError: nothing matches a pattern, a path does not exist, or a path occurs twice.
    """
    out: dict[AnyPath, AnyPath] = {}
    buckets = Buckets()
    for part in filter(None, text.split(SEPARATOR)):
        for match in _objects(part, buckets) if is_object(part) else _files(part):
            key = match if isinstance(match, ObjectPath) else Path(os.path.realpath(match))
            if key in out:
                raise DataError(
                    f"{match} is given twice (also as {out[key]}), so its rows would count twice: give it once"
                )
            out[key] = match
    return tuple(out.values())


def _files(part: str) -> list[Path]:
    """The files and folders of this machine that one path or pattern names."""
    path = Path(part)
    if not glob.has_magic(part) or path.exists():
        return [need_path(path, "log", WHAT)]
    matches = sorted(glob.glob(part, recursive=True), key=natural)  # noqa: PTH207 - of absolute and relative patterns
    if not matches:
        raise DataError(f"nothing matches the pattern {part}: give --path, {WHAT}")
    return [Path(match) for match in matches]


def _objects(part: str, buckets: Buckets) -> list[ObjectPath]:
    """The objects and folders of an object store that one URI or pattern names."""
    path = buckets.path(part)
    if path.exists():
        return [path]
    if not has_magic(part):
        raise DataError(f"no such object or folder: {part}; give --path, {WHAT}")
    matches = sorted(buckets.matches(part), key=lambda match: natural(str(match)))
    if not matches:
        raise DataError(f"nothing matches the pattern {part}: give --path, {WHAT}")
    return matches


def is_text_log(path: AnyPath) -> bool:
    """Whether a path is a file of text, or a folder that contains text files of a log and no parquet file."""
    formats = set()
    for file, name, why in walk(path) if path.is_dir() else [(path, "", "")]:
        if not why:
            with readable(file):
                formats.add(_format(kind_of(file), file, given=not name))
    return bool(formats & {"delimited", "json lines"}) and "parquet" not in formats


def log_files(paths: Sequence[AnyPath]) -> LogFiles:
    """The files below ``paths``, which exist.

    Raises:
        DataError: there is none, their formats differ, or one of them is no log.
    """
    files: dict[AnyPath, str] = {}
    formats: dict[Format, str] = {}
    left_out: dict[str, str] = {}
    partitions: dict[AnyPath, tuple[str, ...]] = {}
    refused: list[str] = []
    seen: dict[tuple[int, int] | AnyPath, str] = {}
    for root in paths:
        if root.is_dir():
            refuse_table(root)
            if isinstance(root, ObjectPath):
                _refuse_written(root)
        for path, name, why in walk(root) if root.is_dir() else [(root, "", "")]:
            shown = str(root / name) if len(paths) > 1 else name or root.name
            if why:
                left_out[shown] = why
                continue
            known = seen.setdefault(_identity(path), shown)
            if known != shown:
                left_out[shown] = f"the same file as {known}"
                continue
            with readable(path):
                kind = kind_of(path)
            form = _format(kind, path, given=not name)
            if form is None:
                if kind.is_data:
                    refused.append(f"{shown} is {kind.words}: {kind.fix}")
                elif kind.words == "empty" and (not name or _ending(path.name)):
                    raise DataError(f"{path} is empty: give the whole file")
                elif not name:
                    raise DataError(f"{path} is {kind.words}, and not a log: {kind.fix or f'give --path, {WHAT}'}")
                else:
                    left_out[shown] = NO_DATA
                continue
            files[path] = shown
            formats.setdefault(form, shown)
            folders = tuple(part for part in name.split("/")[:-1] if partition_key(part))
            if folders:
                partitions[path] = folders
    if refused:
        raise DataError(f"{counted(len(refused), 'file')} would not be read: {first_named(refused)}")
    if not files:
        out = f" (left out: {listed(left_out)})" if left_out else ""
        raise DataError(f"{', '.join(map(str, paths))} contains no log file{out}: give --path, {WHAT}")
    if len(formats) > 1:
        words = " and ".join(f"{form} ({name})" for form, name in formats.items())
        raise DataError(
            f"the files of a log must be of one format, but these are {words}: convert or move some of them"
        )
    (form,) = formats
    return LogFiles(form, files, left_out, partitions)


def _identity(path: AnyPath) -> tuple[int, int] | AnyPath:
    """The same for two names of one file."""
    if isinstance(path, ObjectPath):
        return path
    status = path.stat()
    return status.st_dev, status.st_ino


def _refuse_written(folder: ObjectPath) -> None:
    """Raise DataError for a folder that thinktwice has written, which is more than its parquet files."""
    for name in (SNAPSHOT_FILE, CLEAN_INFO, QUARANTINE_INFO):
        if (folder / name).is_file():
            raise DataError(
                f"{folder} is a folder that thinktwice has written ({name} is in it), not a log: give the log that it was made from, or copy "
                "the folder to this machine"
            )


def _format(kind: FileKind, path: AnyPath, *, given: bool) -> Format | None:
    """The format of a file that is meant to be read, else None. ``given``: the user named this very file."""
    if kind.is_parquet:
        return "parquet"
    ending = _ending(path.name)
    meant = given or ending in TEXT_ENDINGS or "." not in path.name.strip(".")
    words = kind.words.removeprefix("an ").removeprefix("a ").removeprefix("gzip-compressed ")
    if words.startswith("JSON lines") and meant:
        return "json lines"
    if words.startswith(("CSV", "TSV")) and meant:
        return "delimited"
    if words == "no table" and given:  # a text whose first lines have different numbers of cells
        return "delimited"
    return None


def _ending(name: str) -> str:
    """The last ending of a name that is not a codec, if it is that of a log; "" for another."""
    endings = [ending for ending in name.lower().split(".")[1:] if ending not in CODECS]
    return endings[-1] if endings and endings[-1] in TEXT_ENDINGS | ENDINGS else ""
