"""Source for a user's own log in any format that is read: parquet, CSV and TSV, JSON lines; one or several paths or patterns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from thinktwice.data.reading import ADDED, Chunk, Reading
from thinktwice.data.sources.delimited import Dialect, detect, header, read_delimited
from thinktwice.data.sources.json_lines import column_kinds, column_type, read_json_lines
from thinktwice.data.sources.parquet import open_parquet_files, open_parts, with_partition_columns, with_partitions
from thinktwice.data.sources.parts import Parts, partition_key, partition_values, printable
from thinktwice.data.sources.paths import WHAT, LogFiles, expanded, is_text_log, log_files
from thinktwice.data.sources.raw_log import is_raw_log
from thinktwice.data.sources.text import BLOCK_BYTES, file_opener
from thinktwice.errors import DataError, SchemaError
from thinktwice.schema import LogSchema
from thinktwice.schema.columns import Named, named_columns
from thinktwice.storage.location import as_text
from thinktwice.storage.object_path import AnyPath, sha256_of


def open_log(path: Path | str | None, limit: int, seed: int, schema: LogSchema) -> Reading:
    """Open the log of ``path``, which may be several paths (:mod:`thinktwice.data.sources.paths`).

    Raises:
        DataError: there are no files, or files of several formats, or one is damaged. SchemaError: it lacks a column.
    """
    if path is None or not str(path):
        raise DataError(f"source 'log' reads your own copy: give --path, {WHAT}")
    return open_files(as_text(path), named_columns(schema))


def open_files(path: str, named: Named) -> Reading:
    """Open the files of a path or of several as one table, which may be a log or a side table.

    Args:
        named: the columns that must be readable for their uses, if they exist.
    """
    paths = expanded(path)
    first = paths[0]
    if len(paths) == 1 and isinstance(first, Path) and (is_raw_log(first) or not is_text_log(first)):
        return open_parquet_files(first, named)
    files = log_files(paths)
    where = ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    if files.format == "parquet":
        return open_parts(Parts(tuple(files.files), files.left_out, files.partitions), files.files, where, named)
    return _open_delimited(files, where, named) if files.format == "delimited" else _open_json(files, where, named)


def _open_delimited(files: LogFiles, where: str, named: Named) -> Reading:
    dialects: dict[AnyPath, Dialect] = {}
    headers: dict[AnyPath, list[str]] = {}
    for file in files.files:
        opener = file_opener(file)
        dialects[file] = detect(opener, str(file))
        headers[file] = header(opener, str(file), dialects[file])
    columns = pa.schema([(name, pa.string()) for name in _union(headers.values())])
    in_folders = partition_values(files.files, files.partitions, named, headers)

    def chunks() -> Iterator[Chunk]:
        start = 0
        for file in files.files:
            for chunk in read_delimited(file_opener(file), str(file), dialects[file], headers[file], start):
                start += len(chunk.ordinals) + len(chunk.unparsable)
                yield _shaped(_located(chunk, files, file), columns, in_folders, file)

    words = dict.fromkeys(dialect.words for dialect in dialects.values())
    reading = _reading(files, where, columns, in_folders, named, headers, chunks_of=chunks)
    return replace(reading, notes=tuple(words), identity=(*reading.identity, *words))


def _open_json(files: LogFiles, where: str, named: Named) -> Reading:
    kinds: dict[str, set[str]] = {}
    has: dict[AnyPath, list[str]] = {}
    for file in files.files:
        of_file = column_kinds(file_opener(file), str(file))
        has[file] = list(of_file)
        for name, found in of_file.items():
            kinds.setdefault(name, set()).update(found)
    columns = pa.schema([(name, column_type(found)) for name, found in kinds.items()])
    in_folders = partition_values(files.files, files.partitions, named, has)

    def chunks() -> Iterator[Chunk]:
        start = 0
        for file in files.files:
            for chunk in read_json_lines(file_opener(file), str(file), columns, start):
                start += len(chunk.ordinals) + len(chunk.unparsable)
                yield _shaped(_located(chunk, files, file), columns, in_folders, file)

    mixed = {
        name: found for name, found in kinds.items() if len(found) > 1 and pa.types.is_string(columns.field(name).type)
    }
    notes = tuple(
        f"column {name!r} contains {' and '.join(sorted(found))}, and is read as text" for name, found in mixed.items()
    )
    return replace(_reading(files, where, columns, in_folders, named, has, chunks_of=chunks), notes=notes)


def _reading(
    files: LogFiles,
    where: str,
    columns: pa.Schema,
    in_folders: dict[str, dict[AnyPath, str | None]],
    named: Named,
    has: dict[AnyPath, list[str]],
    *,
    chunks_of: object,
) -> Reading:
    reserved = [name for name in ADDED if name in columns.names]
    if reserved:
        raise SchemaError(f"column {reserved[0]!r} of {where} has a reserved name: rename it in the file")
    names_of_schema = set(named)
    missing: dict[str, str] = {}
    for file, names in has.items():
        if names_of_schema & set(columns.names) and not names_of_schema & set(names):
            raise SchemaError(
                f"{file} has none of the columns that the schema names ({', '.join(sorted(names_of_schema & set(columns.names)))}): move it out"
            )
        for name in sorted((names_of_schema & set(columns.names)) - set(names)):
            missing.setdefault(name, f"not in {file.name}")
    digests: dict[str, str] = {}
    first: dict[tuple[str, ...], str] = {}
    for file, name in files.files.items():
        digests[printable(name)] = digest = sha256_of(file)
        same = first.setdefault((digest, *(str(values[file]) for values in in_folders.values())), name)
        if same != name:
            raise DataError(
                f"{printable(same)} and {printable(name)} have the same content, so their rows would count twice: remove one of them"
            )
    size = sum(max(1, file.stat().st_size // BLOCK_BYTES) for file in files.files)
    unread = {partition_key(folder) for folders in files.partitions.values() for folder in folders} - {
        *in_folders,
        *columns.names,
    }
    return Reading(
        where,
        with_partition_columns(columns, in_folders),
        digests,
        chunks_of,  # type: ignore[arg-type]
        size,
        left_out=files.left_out,
        columns_left_out=dict.fromkeys(sorted(unread), "in folder names"),
        columns_missing=missing,
        identity=tuple(f"{name}={values[file]}" for name, values in in_folders.items() for file in files.files),
    )


def _union(headers: object) -> list[str]:
    return list(dict.fromkeys(name for names in headers for name in names))  # type: ignore[attr-defined]


def _located(chunk: Chunk, files: LogFiles, file: AnyPath) -> Chunk:
    """The chunk with the file named in the errors of its records, if the log has several files."""
    if len(files.files) == 1 or not chunk.unparsable:
        return chunk
    name = printable(files.files[file])
    return replace(chunk, unparsable=tuple(replace(u, error=f"{name}, {u.error}") for u in chunk.unparsable))


def _shaped(chunk: Chunk, columns: pa.Schema, in_folders: dict[str, dict[AnyPath, str | None]], file: AnyPath) -> Chunk:
    """The chunk with all columns of the log; a column that the file lacks is null."""
    table = chunk.table
    arrays = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in columns
    ]
    return Chunk(with_partitions(pa.table(arrays, schema=columns), in_folders, file), chunk.ordinals, chunk.unparsable)
