"""Replay of a quarantine: with the side tables that a corrected schema names, and back into a folder that a log is read from."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from thinktwice.data.reading import ADDED
from thinktwice.data.side_tables import read_tables
from thinktwice.data.sources.own_log import open_files
from thinktwice.data.sources.parts import walk
from thinktwice.data.sources.paths import Format, log_files
from thinktwice.errors import DataError, RowsLostError
from thinktwice.files import atomic_file, sha256_file, write_json
from thinktwice.parquet import read_table, write_table
from thinktwice.schema import load_schema
from thinktwice.schema.tables import located
from thinktwice.schema.values import can_spell, one_array, spelled
from thinktwice.validate.row_keys import key_hash, read_keys
from thinktwice.validate.split import SplitResult
from thinktwice.validate.split import replay as judge_again

ENDINGS: dict[Format, str] = {"parquet": "parquet", "delimited": "csv", "json lines": "jsonl"}


def replay(
    quarantine_dir: Path, clean_dir: Path, still_quarantined_dir: Path, *, schema_path: Path | None, now: datetime
) -> SplitResult:
    """Judge quarantined rows again, see :func:`thinktwice.validate.split.replay`. Side tables are read anew if ``schema_path`` is given;
    otherwise they are those of the quarantine."""
    schema = None if schema_path is None else located(load_schema(schema_path), schema_path)
    with tempfile.TemporaryDirectory(prefix="thinktwice-replay-") as scratch:
        if schema is not None:
            read_tables(schema, "replay", Path(scratch))
        return judge_again(
            quarantine_dir,
            clean_dir,
            still_quarantined_dir,
            run_id="replay",
            schema_path=schema_path,
            tables_dir=None if schema is None else scratch,
            as_of=now,
            ingested_at=now,
        )


def put_back(replayed: Path, quarantine: Path, into: Path, result: SplitResult) -> Path:
    """Write the rows that pass now, unchanged, into the folder ``into``, as a file of the format of the log there.

    Args:
        replayed: folder of the replay, with ``clean`` and ``quarantine``.
        quarantine: the quarantine that was replayed.

    The file is named after the rows, so a second call writes the same file again. ``_replayed-ID.json`` beside it, which no source
    reads as a log, is the proof of conservation: the rows in the file and those that stay quarantined are those of ``quarantine``.

    Raises:
        DataError: ``into`` is no folder of a log. RowsLostError: the rows of both are not those of the quarantine.
    """
    form = _format(into)
    originals = read_table(replayed / "clean" / "log.parquet")
    rows = originals.drop_columns([name for name in ADDED if name in originals.column_names])
    moved = read_keys(replayed / "clean" / "log.parquet")
    stay = [read_keys(replayed / "quarantine" / f"{name}.parquet") for name in ("quarantine", "unparsable")]
    before = [read_keys(quarantine / f"{name}.parquet") for name in ("quarantine", "unparsable")]
    hashes = (key_hash(np.concatenate(before)), key_hash(np.concatenate([moved, *stay])))
    identity = key_hash(moved)
    file = into / f"replayed-{identity}.{ENDINGS[form]}"
    with atomic_file(file) as temporary:
        _write(rows, temporary, form)
    read = _read_back(file)
    if hashes[0] != hashes[1] or not _same(rows, read):
        file.unlink()
        raise RowsLostError(
            f"{file} would not have the rows of {quarantine} that pass now: nothing was put back, report this as a bug"
        )
    write_json(
        into / f"_replayed-{identity}.json",
        {
            "quarantine": str(quarantine),
            "file": file.name,
            "sha256": sha256_file(file),
            "rows_in": sum(map(len, before)),
            "rows_put_back": len(moved),
            "rows_quarantined": sum(map(len, stay)),
            "key_hash_in": hashes[0],
            "key_hash_out": hashes[1],
            "rule_set_version": result.rule_set_version,
        },
    )
    return file


def _format(into: Path) -> Format:
    if not into.is_dir():
        raise DataError(
            f"{into} is not a folder: give --into the folder that your log is read from, or an empty one for a log of its own"
        )
    if (into / "snapshot.json").is_file() or (into / "clean.json").is_file() or (into / "quarantine.json").is_file():
        raise DataError(f"{into} was written by thinktwice: give --into the folder of your own log, or an empty one")
    if not any(not why for _, _, why in walk(into)):
        return "parquet"
    return log_files([into]).format


def _write(rows: pa.Table, target: Path, form: Format) -> None:
    if form == "parquet":
        write_table(rows, target, compression="zstd")
        return
    frame = pl.DataFrame(rows)
    if form == "delimited":
        frame.write_csv(target)
    else:
        frame.write_ndjson(target)


def _read_back(file: Path) -> pa.Table:
    reading = open_files(str(file), {})
    return (
        pa.concat_tables([chunk.table for chunk in reading.chunks()])
        if reading.num_chunks
        else reading.columns.empty_table()
    )


def _same(rows: pa.Table, read: pa.Table) -> bool:
    """Whether both tables have the same values, as ids and categories are spelled."""
    if rows.num_rows != read.num_rows or rows.column_names != read.column_names:
        return False
    for name in rows.column_names:
        first, second = one_array(rows.column(name)), one_array(read.column(name))
        if first.type == second.type:
            if not first.equals(second) and not spelled_equal(first, second):
                return False
        elif not spelled_equal(first, second):
            return False
    return True


def spelled_equal(first: pa.Array, second: pa.Array) -> bool:
    """Whether the values of two arrays have the same spelling; lists are compared as they are."""
    if can_spell(first.type) and can_spell(second.type):
        return spelled(first).equals(spelled(second))
    return bool(pl.Series(first).equals(pl.Series(second).cast(pl.Series(first).dtype)))
