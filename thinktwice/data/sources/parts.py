"""Files of a log that is a folder, selected and ordered as by Spark, Hive and Arrow.

Names that start with ``.`` or ``_`` are left out, with everything below such a folder. Numbers in names compare as numbers,
so ``part.2`` comes before ``part.10``. The format of a file is detected from its first bytes; the name decides whether it
is meant to be read. Files that are not read are reported: a file that is not data is left out, one that looks like data is
refused.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from thinktwice.data.reading import readable
from thinktwice.data.sources.file_kind import kind_of
from thinktwice.errors import DataError
from thinktwice.storage.object_path import AnyPath, ObjectPath

#: Endings of a parquet file; the codec may precede or follow (``.snappy.parquet``, ``.parquet.gz``).
ENDINGS = frozenset({"parquet", "pq", "parq", "par"})
CODECS = frozenset(
    {"snappy", "snap", "gz", "gzip", "zst", "zstd", "lz4", "lz4_raw", "br", "brotli", "lzo", "uncompressed", "none"}
)
MAX_NAMED = 5  # files named in one sentence; the snapshot lists all
#: Folders and files that mark a folder of parquet files as a table with its own list of valid files.
TABLES = {"_delta_log": "a Delta Lake table", ".hoodie": "a Hudi table"}

HIDDEN = "hidden"
NO_DATA = "no data"
SAME = "the same file again"


@dataclass(frozen=True)
class Parts:
    """``files`` in reading order; ``left_out`` is path below the folder (a folder ends with ``/``) -> why.

    ``partitions`` is file -> the names ``key=value`` of folders between the given folder and the file.
    """

    files: tuple[AnyPath, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    partitions: dict[AnyPath, tuple[str, ...]] = field(default_factory=dict)


def parts_of(folder: Path) -> Parts:
    """The parquet files below ``folder``, and those left out.

    Raises:
        DataError: the folder is a table of another kind, contains a file that looks like data and would not be read, is not
            readable, or contains no parquet file.
    """
    refuse_table(folder)
    files: list[AnyPath] = []
    left_out: dict[str, str] = {}
    partitions: dict[AnyPath, tuple[str, ...]] = {}
    refused: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    for path, name, why in _walk_folder(folder):
        if why:
            left_out[name] = why
            continue
        status = path.stat()
        known = seen.setdefault((status.st_dev, status.st_ino), name)
        if known != name and path.is_symlink():
            left_out[name] = f"{SAME} as {known}"
            continue
        with readable(path):
            kind = kind_of(path)
        if kind.is_parquet and is_parquet_name(path.name):
            files.append(path)
            partitions[path] = tuple(part for part in name.split("/")[:-1] if partition_key(part))
        elif kind.is_parquet:
            refused.append(f"{name} is a parquet file by its content, but does not end like one")
        elif kind.is_data:
            refused.append(f"{name} is {kind.words}")
        elif _claims_parquet(path.name):
            shown = (
                "is empty: give the whole file"
                if kind.words == "empty"
                else "is not an intact parquet file: copy it again"
            )
            raise DataError(f"{path} {shown}")
        else:
            left_out[name] = NO_DATA
    if refused:
        raise DataError(
            f"folder {folder} contains {counted(len(refused), 'file')} that would not be read: {first_named(refused)}. "
            "Convert them to parquet (*.parquet), or move them out of the folder"
        )
    if not files:
        out = f" (left out: {listed(left_out)})" if left_out else ""
        raise DataError(
            f"folder {folder} contains no *.parquet file{out}: give --path, your parquet file or a folder of them"
        )
    return Parts(tuple(files), left_out, {file: found for file, found in partitions.items() if found})


def partition_key(folder: str) -> str:
    """The key of a folder ``key=value``; "" for another name."""
    key, equals, _ = folder.partition("=")
    return key if equals else ""


def is_parquet_name(name: str) -> bool:
    """Whether a file of this name is meant to be read: it ends like a parquet file, or has no ending except numbers.

    Hive writes ``000000_0``, Spark ``part-00000.c000.snappy.parquet``, dask ``part.0.parquet``. A backup (``.bak``, ``.old``,
    ``.tmp``, a name that ends with ``~``) is not meant to be read.
    """
    ending = _ending(name)
    return not name.endswith("~") and (not ending or ending in ENDINGS or re.fullmatch(r"c?[0-9]+", ending) is not None)


def _claims_parquet(name: str) -> bool:
    return _ending(name) in ENDINGS


def _ending(name: str) -> str:
    """The last ending of a name that is not a codec; "" if there is none."""
    endings = [e for e in name.lower().split(".")[1:] if e not in CODECS]
    return endings[-1] if endings else ""


def natural(name: str) -> tuple[list[int | str], str]:
    """A sort key of a name: numbers in it compare as numbers; of equal ones the digits decide."""
    pieces = re.split(r"([0-9]+)", name)
    return [int(piece) if number % 2 else piece for number, piece in enumerate(pieces)], name


def what_was_read(
    num_files: int,
    left_out: Mapping[str, str],
    columns_left_out: Mapping[str, str],
    columns_missing: Mapping[str, str],
) -> list[str]:
    """A line about the files, ``5 files read, 2 left out: notes.txt (no data), .cache/ (hidden)``, and two about columns.

    Empty for a single file that was read completely.
    """
    lines = []
    if num_files > 1 or left_out:
        out = f", {len(left_out)} left out: {listed(left_out)}" if left_out else ""
        lines.append(f"{counted(num_files, 'file')} read{out}")
    if columns_left_out:
        number = counted(len(columns_left_out), "column")
        lines.append(f"{number} left out that the schema does not name: {listed(columns_left_out)}")
    if columns_missing:
        number = counted(len(columns_missing), "column")
        lines.append(f"{number} of the schema not in every file, and empty there: {listed(columns_missing)}")
    return lines


def listed(left_out: Mapping[str, str]) -> str:
    """The first of those left out, and why."""
    return first_named([f"{printable(name)} ({printable(why)})" for name, why in left_out.items()])


def printable(name: str) -> str:
    """A file name without line breaks, control characters and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def first_named(items: list[str]) -> str:
    """The first items, and how many more there are."""
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(items[:MAX_NAMED]) + more


def counted(number: int, word: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def walk(folder: AnyPath) -> Iterator[tuple[AnyPath, str, str]]:
    """(path, name below the folder, why it is left out or "") of every entry in reading order; links are followed."""
    return _walk_objects(folder) if isinstance(folder, ObjectPath) else _walk_folder(folder)


def _walk_objects(folder: ObjectPath) -> Iterator[tuple[AnyPath, str, str]]:
    """The same of the objects below a folder: all in one listing, in the order that their names would have as files."""
    hidden: set[str] = set()
    for path, name in sorted(folder.objects(), key=lambda found: [natural(part) for part in found[1].split("/")]):
        parts = name.split("/")
        depth = next((number for number, part in enumerate(parts, 1) if _is_hidden(part)), 0)
        shown = "/".join(parts[:depth]) + ("/" if depth < len(parts) else "")
        if not depth:
            yield path, name, ""
        elif shown not in hidden:
            hidden.add(shown)
            yield path, shown, HIDDEN


def _walk_folder(folder: Path) -> Iterator[tuple[Path, str, str]]:
    entered: dict[tuple[int, int], str] = {}
    waiting = [(folder, "")]
    while waiting:
        path, name = waiting.pop()
        entry = Path(name).name
        with readable(path):
            status = _status(path)
        if name and _is_hidden(entry):
            folder_mark = "/" if status is not None and stat.S_ISDIR(status.st_mode) else ""
            yield path, name + folder_mark, HIDDEN
        elif status is None:
            if _claims_parquet(entry):
                raise DataError(f"{path} is a broken link: remove it, or restore its target")
            yield path, name, "a broken link"
        elif stat.S_ISDIR(status.st_mode):
            known = entered.setdefault((status.st_dev, status.st_ino), name)
            if known != name:
                yield path, f"{name}/", f"the same folder as {known or '.'}/"
                continue
            with readable(path), os.scandir(path) as entries:
                names = sorted((e.name for e in entries), key=natural, reverse=True)
            waiting.extend((path / e, f"{name}/{e}" if name else e) for e in names)
        else:
            yield path, name, "" if stat.S_ISREG(status.st_mode) else "not a file"


def _status(path: Path) -> os.stat_result | None:
    """The status of a path's target; None for a broken or circular link."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


def _is_hidden(name: str) -> bool:
    """As in Spark, ``_day=1`` is a partition and not hidden; a file that Hadoop is still copying is hidden."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name) or name.endswith("._COPYING_")


def refuse_table(folder: AnyPath) -> None:
    """Raise DataError for a table that keeps its own list of valid files."""
    for name, table in TABLES.items():
        if (folder / name).exists():
            raise DataError(
                f"{folder} is {table} ({name} is in it), which keeps its own list of valid files: "
                "export its current rows to plain parquet files and give those"
            )
    metadata = folder / "metadata"
    if isinstance(metadata, ObjectPath):
        versioned = any(name.endswith(".metadata.json") and "/" not in name for _, name in metadata.objects())
    else:
        versioned = metadata.is_dir() and any(metadata.glob("*.metadata.json"))
    if versioned:
        raise DataError(
            f"{folder} is an Iceberg table (metadata/*.metadata.json is in it), which keeps its own list of valid files: "
            "export its current rows to plain parquet files and give those"
        )


def partition_value(folder: str) -> str | None:
    """The value of a folder ``key=value`` as Hive and Spark write it; None for their name of a missing value."""
    value = unquote(folder.partition("=")[2])
    return None if value in ("", "__HIVE_DEFAULT_PARTITION__") else value


def partition_values(
    files: Iterable[AnyPath],
    partitions: Mapping[AnyPath, tuple[str, ...]],
    named: Iterable[str],
    has: Mapping[AnyPath, Iterable[str]],
) -> dict[str, dict[AnyPath, str | None]]:
    """Columns that the schema names and only folder names have: column -> file -> value.

    Args:
        named: columns that the schema names.
        has: file -> the columns in it.

    Raises:
        DataError: some files have the column, or the folder, and others do not.
    """
    files = list(files)
    out: dict[str, dict[AnyPath, str | None]] = {}
    for column in named:
        inside = [file for file in files if column in has[file]]
        folders = {file: part for file in files for part in partitions.get(file, ()) if partition_key(part) == column}
        if not folders or len(inside) == len(files):
            continue
        without = next((file for file in files if file not in folders or file in inside), None)
        if without is not None:
            other = "has the column itself" if without in inside else "is in no such folder"
            raise DataError(
                f"column {column!r}, which the schema names, is in the folder names of some files ({next(iter(folders.values()))}), "
                f"but {without} {other}: write the column into all files, or put all files into such folders"
            )
        out[column] = {file: partition_value(part) for file, part in folders.items()}
    return out
