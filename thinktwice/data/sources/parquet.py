"""Source for a user's own log: one parquet file, a folder of them, or a raw log folder, described by a schema file without
code."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from thinktwice.data.reading import ADDED, Chunk, Reading, need_path
from thinktwice.data.sources.parquet_files import BATCH_ROWS, batches, footer
from thinktwice.data.sources.parts import Parts, partition_key, partition_values, parts_of, printable
from thinktwice.data.sources.raw_log import is_raw_log, open_raw_log
from thinktwice.data.sources.unite import shaped, unite
from thinktwice.errors import DataError, SchemaError
from thinktwice.schema import LogSchema
from thinktwice.schema.columns import Named, named_columns
from thinktwice.storage.object_path import AnyPath, sha256_of

WHAT = "your parquet file, a folder of parquet files or a raw log folder"
CLEAN_FILE = "clean.parquet"
QUARANTINE_INFO = "quarantine.json"


def open_parquet_log(path: Path | str | None, limit: int, seed: int, schema: LogSchema) -> Reading:
    """Open a parquet file, or the parquet files of a folder and the folders in it (:mod:`thinktwice.data.sources.parts`).

    A raw log folder (as written by ``thinktwice data simulate``, ``ingest`` and ``replay``) is read with its own rows and
    schema.
    """
    return open_parquet_files(need_path(path, "parquet", WHAT), named_columns(schema))


def open_parquet_files(path: Path, named: Named) -> Reading:
    """Like :func:`open_parquet_log`, for any table whose columns have the uses ``named``."""
    if is_raw_log(path):
        return open_raw_log(path)
    if (path / QUARANTINE_INFO).is_file():
        raise DataError(
            f"{path} is a quarantine: judge its rows again under a mended schema with `thinktwice data replay --quarantine "
            f"{shlex.quote(str(path))} --out DIR --schema MENDED.yaml`, and give DIR/clean"
        )
    if (path / CLEAN_FILE).is_file():
        raise DataError(
            f"{path} is a clean log, which a validation has made: give the log that it was made from, or the clean/ of a "
            "`thinktwice data replay`"
        )
    parts = parts_of(path) if path.is_dir() else Parts((path,))
    names = {file: str(Path(str(file)).relative_to(path)) if path.is_dir() else file.name for file in parts.files}
    return open_parts(parts, names, str(path), named)


def open_parts(parts: Parts, names: Mapping[AnyPath, str], where: str, named: Named) -> Reading:
    """Open parquet files as one log; ``names`` are their names in messages and in the snapshot."""
    _refuse_names(parts)
    footers = {file: footer(file) for file in parts.files}
    in_folders = partition_values(parts.files, parts.partitions, named, {f: c.names for f, (_, c) in footers.items()})
    layout = unite({file: columns for file, (_, columns) in footers.items()}, named)
    reserved = [c for c in ADDED if c in layout.columns.names]
    if reserved:
        raise SchemaError(
            f"column {reserved[0]!r} of {where} has a reserved name: rename it in the file (if this is a file that thinktwice "
            "has written, give its folder)"
        )
    digests = {names[file]: sha256_of(file) for file in parts.files}
    identity = tuple(f"{column}={values[file]}" for column, values in in_folders.items() for file in parts.files)
    values_of = {names[file]: tuple(values[file] for values in in_folders.values()) for file in parts.files}
    _refuse_copies(digests, [num_rows for num_rows, _ in footers.values()], values_of)
    selected = None if not layout.left_out else layout.columns.names

    def chunks() -> Iterator[Chunk]:
        start = 0
        for file in parts.files:
            present = None if selected is None else [c for c in selected if c in footers[file][1].names]
            for batch in batches(file, present):
                table = with_partitions(shaped(batch, layout.columns, file), in_folders, file)
                yield Chunk(table, np.arange(start, start + table.num_rows, dtype=np.int64))
                start += table.num_rows

    num_chunks = sum(-(-num_rows // BATCH_ROWS) for num_rows, _ in footers.values())
    unread = {partition_key(folder) for folders in parts.partitions.values() for folder in folders} - {*in_folders}
    return Reading(
        where,
        with_partition_columns(layout.columns, in_folders),
        digests,
        chunks,
        max(1, num_chunks),
        left_out=parts.left_out,
        columns_left_out=layout.left_out
        | {key: "in folder names" for key in sorted(unread) if key not in layout.columns.names},
        columns_missing=layout.missing,
        identity=identity,
    )


def with_partition_columns(columns: pa.Schema, in_folders: Mapping[str, object]) -> pa.Schema:
    """The columns of files and those of their folder names."""
    return pa.schema([*columns, *(pa.field(name, pa.string()) for name in in_folders)])


def with_partitions(table: pa.Table, in_folders: Mapping[str, Mapping[AnyPath, str | None]], file: AnyPath) -> pa.Table:
    """Append the columns of the folder names of ``file``."""
    for name, values in in_folders.items():
        table = table.append_column(
            pa.field(name, pa.string()), pa.repeat(pa.scalar(values[file], pa.string()), len(table))
        )
    return table


def _refuse_names(parts: Parts) -> None:
    for file in parts.files:
        try:
            str(file).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"the name of {printable(str(file))} is not UTF-8 text: rename the file") from error


def _refuse_copies(names: dict[str, str], num_rows: list[int], partition: Mapping[str, tuple[str | None, ...]]) -> None:
    """Refuse two files of the same content and partition, which would count every row twice. Files without rows may be equal."""
    first: dict[tuple[str, tuple[str | None, ...]], str] = {}
    for (name, digest), rows in zip(names.items(), num_rows, strict=True):
        key = (digest, partition[name])
        if rows and first.setdefault(key, name) != name:
            raise DataError(
                f"{printable(first[key])} and {printable(name)} have the same content, so their {rows:,} rows would count "
                "twice: remove one of them"
            )
