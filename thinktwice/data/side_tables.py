"""Reading of the side tables that a schema names into a raw log folder; see :class:`thinktwice.schema.SideTable`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from thinktwice.data.reading import ADDED, SIDE_LINES, SOURCE_ROW, Chunk, Reading
from thinktwice.data.row_ids import row_ids
from thinktwice.data.sources.own_log import open_files
from thinktwice.data.sources.parquet_files import batches, footer
from thinktwice.data.sources.raw_log import is_raw_log
from thinktwice.errors import DataError, SchemaError
from thinktwice.files import sha256_file
from thinktwice.parquet import parquet_writer, read_table
from thinktwice.progress import track
from thinktwice.schema import LogSchema
from thinktwice.schema.columns import check_named, known_column, table_columns
from thinktwice.schema.fields import TABLE_OF
from thinktwice.schema.values import one_array, spelled
from thinktwice.validate.parse import times_of
from thinktwice.validate.side_tables import Side, raw_table


@dataclass(frozen=True)
class TablesRead:
    """What was read: ``rows`` and broken lines (``lines``, as :data:`~thinktwice.data.reading.SIDE_LINES`) of each table, SHA-256 of
    the files, and sentences about how they were read."""

    rows: dict[str, int]
    unparsable: dict[str, int]
    lines: pa.Table
    files: dict[str, str]
    identity: tuple[str, ...]
    notes: tuple[str, ...]


def read_tables(schema: LogSchema, source: str, out: Path) -> TablesRead:
    """Read the side tables of a located schema into ``out``.

    Raises:
        DataError: a table cannot be read, has no rows, or describes a key twice at one time.
        SchemaError: the schema does not fit the columns of a table.
    """
    rows: dict[str, int] = {}
    unparsable: dict[str, int] = {}
    files: dict[str, str] = {}
    lines, identity, notes = [SIDE_LINES.empty_table()], [], []
    for side in schema.side_tables:
        name, named = TABLE_OF[side], table_columns(schema, side)
        reading = _open(schema.side_tables[side].path, name, schema, side)
        _refuse_sequences_of_the_log(schema, side, reading)
        check_named(named, schema.name, reading.columns, reading.where)
        rows[name], broken = _write(reading, name, source, raw_table(out, side))
        if not rows[name]:
            raise DataError(f"{reading.where}, the table of {name}, contains no rows: give the whole file")
        _refuse_repeated(schema, side, reading.where, raw_table(out, side))
        lines.append(broken)
        unparsable[reading.where] = broken.num_rows
        files |= {f"{name}: {file}": digest for file, digest in reading.files.items()}
        identity += [name, *reading.identity]
        notes += [f"{name}: {note}" for note in reading.notes]
    return TablesRead(rows, unparsable, pa.concat_tables(lines), files, tuple(identity), tuple(notes))


def _refuse_sequences_of_the_log(schema: LogSchema, side: Side, reading: Reading) -> None:
    for sequence in schema.table_sequences(side):
        if sequence.column not in reading.columns.names:
            raise SchemaError(
                f"sequence {sequence.name!r} wants column {sequence.column!r} of {reading.where}, the table of {TABLE_OF[side]}, which does "
                f"not have it: if each row of the log has it, add 'entity: context' to the sequence; {known_column(str(sequence.column), reading.columns.names)}"
            )


def _open(path: str, name: str, schema: LogSchema, side: Side) -> Reading:
    file = Path(path)
    if is_raw_log(file.parent) and file.name == raw_table(Path(), side).name:
        return _open_raw(file)
    try:
        return open_files(path, table_columns(schema, side))
    except DataError as error:
        raise DataError(f"the table of {name}: {error}") from error


def _open_raw(file: Path) -> Reading:
    """A side table in a raw log folder, without the columns that an ingest has added."""
    _, columns = footer(file)
    kept = pa.schema([f for f in columns if f.name not in ADDED])

    def chunks() -> Iterator[Chunk]:
        start = 0
        for batch in batches(file, kept.names):
            yield Chunk(pa.Table.from_batches([batch]), np.arange(start, start + batch.num_rows, dtype=np.int64))
            start += batch.num_rows

    return Reading(str(file), kept, {file.name: sha256_file(file)}, chunks)


def _write(reading: Reading, name: str, source: str, target: Path) -> tuple[int, pa.Table]:
    """Number of rows written, and the lines that did not become rows."""
    reserved = [c for c in ADDED if c in reading.columns.names]
    if reserved:
        raise SchemaError(f"column {reserved[0]!r} of {reading.where} has a reserved name: rename it in the file")
    fields = [pa.field("row_id", pa.string()), pa.field(SOURCE_ROW, pa.int64()), *reading.columns]
    columns = pa.schema([f.with_metadata(None) for f in fields])
    rows, broken = 0, []
    with parquet_writer(target, columns, compression="zstd", compression_level=1) as out:
        for chunk in track(reading.chunks(), stage="ingest", total=reading.num_chunks, label=name):
            if chunk.table.num_rows:
                ids = [row_ids(f"{source} {name}", chunk.ordinals), pa.array(chunk.ordinals, pa.int64())]
                out.write_table(pa.table([*ids, *chunk.table.columns], schema=columns))
                rows += chunk.table.num_rows
            broken += [(reading.where, u.ordinal + 1, u.raw, u.error) for u in chunk.unparsable]
    return rows, pa.table([list(values) for values in zip(*broken, strict=True)] or [[]] * 4, schema=SIDE_LINES)


def _refuse_repeated(schema: LogSchema, side: Side, where: str, table: Path) -> None:
    """Raise DataError for two rows of one key, or of one key and instant."""
    valid_from = schema.valid_from(side)
    key = schema.table_key(side)
    columns = [key] if valid_from is None else list(dict.fromkeys([key, str(valid_from.column)]))
    read = read_table(table, columns)
    frame = pl.DataFrame({"key": spelled(one_array(read.column(key)))}).with_row_index("row", offset=1)
    if valid_from is not None:
        values = one_array(read.column(str(valid_from.column)))
        values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        frame = frame.with_columns(times_of(valid_from, values).micros.alias("at")).filter(pl.col("at").is_not_null())
    frame = frame.filter(pl.col("key").is_not_null())
    by = [name for name in ("key", "at") if name in frame.columns]
    again = frame.filter(~pl.struct(by).is_first_distinct())
    if not again.height:
        return
    second = again.row(0, named=True)
    same = frame.filter(pl.col("key") == second["key"], *([pl.col("at") == second["at"]] if "at" in by else []))
    rows = ", ".join(map(str, same["row"].head(3).to_list()))
    more = f" ({again.height:,} such rows)" if again.height > 1 else ""
    name = TABLE_OF[side]
    if valid_from is None:
        raise DataError(
            f"{where} has several rows for {key} {second['key']!r} (rows {rows}){more}: keep one, or name the column with the time from "
            f"which each is valid (tables: {{{name}: {{valid_from: COLUMN}}}})"
        )
    raise DataError(
        f"{where} has several rows for {key} {second['key']!r} that are valid from the same time (rows {rows}){more}, so their validity "
        "overlaps: keep one of them"
    )
