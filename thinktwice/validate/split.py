"""Splits a raw log into a clean log and a quarantine, and proves that nothing was lost.

Three passes over the parquet file, each in bounded memory (chunks of rows; per row of the log only four numbers are held,
so ten million rows need well under 3 GB):

1. ids, times and two hashes of every row: the order of the clean log, and the duplicates;
2. every rule on every row: bad rows go to the quarantine with all their reasons and their untouched source columns,
   good rows to the part of the clean log that holds their time;
3. each part is sorted by (event_time, row_id) and appended to the clean log.

The proof is read back from the files just written: the row ids of both, sorted together, equal those of the input.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from thinktwice.errors import DataError, RowsLostError
from thinktwice.files import atomic_dir, read_json, write_json
from thinktwice.parquet import parquet_writer, read_frame, read_table, scan_frame
from thinktwice.schema.log import EVENT_TIME, LABEL, ROW_ID, LogSchema, load_schema
from thinktwice.validate.copies import later_copies
from thinktwice.validate.parse import SOURCE_ROW, broken, canonical, event_time, violations
from thinktwice.validate.quarantine import QuarantineWriter, Stamp, original_columns, write_unparsable
from thinktwice.validate.raw_rows import RawRows, frame_of, open_rows, parquet_file
from thinktwice.validate.rules import UNSPLITTABLE, rule_set_version

PART_ROWS = 1_200_000  # rows sorted at once

DUPLICATE = "!row:duplicate"

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SplitResult:
    """What became of the rows of a log. The hashes are order-free sums over row ids, as 16 hex digits."""

    rows_in: int
    rows_clean: int
    rows_quarantined: int
    key_hash_in: str
    key_hash_out: str
    reasons: dict[str, int]  # rule id -> rows that break it; a row counts once under each of its reasons
    rule_set_version: str


def split_log(
    raw_dir: Path | str,
    clean_dir: Path | str,
    quarantine_dir: Path | str,
    *,
    run_id: str,
    as_of: datetime | None = None,
    ingested_at: datetime | None = None,
) -> SplitResult:
    """Split the raw log in ``raw_dir`` into ``clean_dir`` and ``quarantine_dir`` (both replaced as a whole).

    Args:
        raw_dir: ``log.parquet``, ``schema.yaml``, ``snapshot.json``, optionally ``unparsable.parquet``.
        run_id: written into every quarantined row.
        as_of: the moment of the check; later impressions are from the future and quarantined. None: not checked.
        ingested_at: written into every quarantined row. The same inputs give the same files.

    Raises:
        SchemaError: the schema does not fit the columns of the log.
        DataError: the log is missing, damaged or empty.
        RowsLostError: rows in and rows out differ.
    """
    raw_dir = Path(raw_dir)
    schema = load_schema(raw_dir / "schema.yaml")
    snapshot = _described(raw_dir / "snapshot.json") if (raw_dir / "snapshot.json").exists() else {}
    source = open_rows(raw_dir / "log.parquet", raw_dir / "unparsable.parquet", schema, as_of)
    stamp = Stamp(rule_set_version(schema), run_id, ingested_at)
    return _split(source, Path(clean_dir), Path(quarantine_dir), stamp, str(snapshot.get("snapshot_id", "")))


def replay(
    quarantine_dir: Path | str,
    clean_dir: Path | str,
    still_quarantined_dir: Path | str,
    *,
    run_id: str,
    schema_path: Path | str | None = None,
    as_of: datetime | None = None,
    ingested_at: datetime | None = None,
) -> SplitResult:
    """Judge quarantined rows again, under the rules of ``schema_path`` (default: the schema kept in the quarantine).

    Rows that pass now become a clean log of their own; the others a new quarantine. The folder of the clean log is a raw log
    folder too (``log.parquet`` with the untouched originals of the same rows), so a pipeline can read it as a source. A row
    that was quarantined as a duplicate stays one while the schema has that rule, because its first copy lies outside the
    quarantine.
    Errors as in :func:`split_log`.
    """
    quarantine_dir = Path(quarantine_dir)
    schema = load_schema(Path(schema_path) if schema_path is not None else quarantine_dir / "schema.yaml")
    info = _described(quarantine_dir / "quarantine.json")
    if not isinstance(info.get("columns"), dict):
        raise DataError(f"{quarantine_dir / 'quarantine.json'} names no columns: give the quarantine of a validation")
    log = quarantine_dir / "quarantine.parquet"
    source = open_rows(log, quarantine_dir / "unparsable.parquet", schema, as_of, own=info["columns"])
    if any(rule.check == "duplicate" for rule in source.rules):
        column = info["columns"]["reasons"]
        reasons = frame_of(read_table(log, [ROW_ID, column])).filter(pl.col(column).list.contains("row:duplicate"))
        source = replace(source, known_duplicates=frozenset(reasons[ROW_ID].to_list()))
    stamp = Stamp(rule_set_version(schema), run_id, ingested_at)
    snapshot_id = str(info.get("snapshot_id", ""))
    return _split(source, Path(clean_dir), Path(still_quarantined_dir), stamp, snapshot_id, keep_originals=True)


def _described(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): ingest or validate the log again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no description of a log: ingest or validate the log again")
    return value


def row_keys(row_ids: pl.Series, *, where: str) -> Keys:
    """Row ids as numbers. Raises DataError when one is not 16 hex digits."""
    if row_ids.len() and not bool((row_ids.str.len_bytes() == 16).fill_null(False).all()):
        raise DataError(f"{where}: {ROW_ID} must be 16 hex digits in every row; ingest the log again")
    try:
        return np.frombuffer(bytes.fromhex("".join(row_ids.to_list())), dtype=">u8").astype(np.uint64)
    except ValueError as error:
        raise DataError(f"{where}: {ROW_ID} must be 16 hex digits in every row; ingest the log again") from error


def key_hash(keys: Keys) -> str:
    """Order-free hash of a set of row keys: the sum modulo 2**64 of the mixed keys (splitmix64), as 16 hex digits."""
    with np.errstate(over="ignore"):
        mixed = keys + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        return f"{int(mixed.sum(dtype=np.uint64)):016x}"


def clean_arrow_schema(schema: LogSchema, names: list[str]) -> pa.Schema:
    """Arrow types of a clean log with these columns."""
    numbers = {f.name for f in schema.fields if f.kind == "numeric"} | {"propensity", "truth"}
    vectors = {v.name for v in schema.vectors}
    special = {EVENT_TIME: pa.timestamp("us", tz="UTC"), LABEL: pa.int8()}
    fields = []
    for name in names:
        if name in vectors:
            kind: pa.DataType = pa.list_(pa.float32())
        else:
            kind = special.get(name) or (pa.float64() if name in numbers else pa.string())
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


@dataclass(frozen=True)
class _Plan:
    keys: Keys  # [R] row ids, in file order
    duplicate: npt.NDArray[np.bool_]  # [R] a later copy of a row
    part: npt.NDArray[np.int32]  # [R] which part of the clean log a row belongs to, when it is clean
    num_parts: int


def _plan(source: RawRows) -> _Plan:
    """First pass."""
    find = any(rule.check == "duplicate" for rule in source.rules)
    keys, times, first, second, known = [], [], [], [], []
    for frame in source.frames(what="order"):
        keys.append(row_keys(frame[ROW_ID], where=str(source.log)))
        micros = frame.select(event_time(source.schema, source.dtypes).fill_null(0).alias("t"))["t"]
        times.append(micros.to_numpy())
        if find:
            rows = frame.select(source.named)
            first.append(rows.hash_rows(seed=1).to_numpy())
            second.append(rows.hash_rows(seed=2).to_numpy())
            known.append(frame[ROW_ID].is_in(list(source.known_duplicates)).to_numpy())
    if not keys:
        return _Plan(np.zeros(0, np.uint64), np.zeros(0, bool), np.zeros(0, np.int32), 1)
    key = np.concatenate(keys)
    if find:
        duplicate = later_copies(source, np.concatenate(first), np.concatenate(second)) | np.concatenate(known)
    else:
        duplicate = np.zeros(len(key), dtype=bool)
    num_parts = -(-len(key) // PART_ROWS)
    part = np.zeros(len(key), dtype=np.int32)
    if num_parts > 1:
        part[np.lexsort((key, np.concatenate(times)))] = np.arange(len(key)) // PART_ROWS
    return _Plan(key, duplicate, part, num_parts)


def _split(
    source: RawRows,
    clean_dir: Path,
    quarantine_dir: Path,
    stamp: Stamp,
    snapshot_id: str,
    *,
    keep_originals: bool = False,
) -> SplitResult:
    plan = _plan(source)
    unparsable, num_unparsable = _unparsable_keys(source.unparsable)
    keys_in = np.sort(np.concatenate([plan.keys, unparsable]))
    if len(keys_in) == 0:
        raise DataError(f"{source.log} holds no row: give a log with at least one impression")
    if bool((keys_in[1:] == keys_in[:-1]).any()):
        raise DataError(
            f"{source.log}: two rows share one {ROW_ID}, so rows cannot be told apart; ingest the log again"
        )
    reasons = {rule.id: 0 for rule in source.rules}
    reasons[UNSPLITTABLE.id] = num_unparsable
    with atomic_dir(clean_dir) as clean, atomic_dir(quarantine_dir) as quarantine:
        bad_rows = _write_rows(source, plan, stamp, clean, quarantine, reasons)
        write_unparsable(source.unparsable, quarantine / "unparsable.parquet", stamp)
        for folder in (clean, quarantine):
            (folder / "schema.yaml").write_text(source.schema.to_yaml(), encoding="utf-8")
        clean_keys = _read_keys(clean / "clean.parquet")
        bad_keys = np.concatenate([_read_keys(quarantine / f"{n}.parquet") for n in ("quarantine", "unparsable")])
        keys_out = np.sort(np.concatenate([clean_keys, bad_keys]))
        result = SplitResult(
            rows_in=len(keys_in),
            rows_clean=len(clean_keys),
            rows_quarantined=len(bad_keys),
            key_hash_in=key_hash(keys_in),
            key_hash_out=key_hash(keys_out),
            reasons={rule: count for rule, count in reasons.items() if count},
            rule_set_version=stamp.rule_set_version,
        )
        if not np.array_equal(keys_in, keys_out) or result.key_hash_in != result.key_hash_out:
            raise RowsLostError(
                f"{source.log}: {result.rows_in} rows in, but {result.rows_clean} clean and {result.rows_quarantined} quarantined "
                f"with key hash {result.key_hash_out} instead of {result.key_hash_in}: nothing was written, report this as a bug"
            )
        if keep_originals:
            _write_originals(source, ~bad_rows, clean, clean_keys, snapshot_id)
        info: dict[str, Any] = {**asdict(result), "snapshot_id": snapshot_id, "run_id": stamp.run_id}
        info["schema_name"] = source.schema.name
        info["conserved"] = True
        write_json(clean / "clean.json", {**info, **_span(clean / "clean.parquet")})
        write_json(quarantine / "quarantine.json", {**info, "columns": original_columns(source.columns)})
    return result


def _write_rows(
    source: RawRows, plan: _Plan, stamp: Stamp, clean: Path, quarantine: Path, reasons: dict[str, int]
) -> npt.NDArray[np.bool_]:
    """Second and third pass, and the bad rows once more with all their columns; returns which rows [R] are bad."""
    columns = canonical(source.schema, source.dtypes)
    arrow = clean_arrow_schema(source.schema, list(columns))
    marks = violations(source.schema, source.rules, source.dtypes, as_of=source.as_of)
    names = [broken(rule) for rule in source.rules if rule.check not in ("splittable", "duplicate")]
    every = [*names, DUPLICATE]
    parts: list[list[pl.DataFrame]] = [[] for _ in range(plan.num_parts)]
    scratch = clean / "parts"
    bad_rows = np.zeros(len(plan.keys), dtype=bool)
    why: list[pl.DataFrame] = []
    with ExitStack() as open_files:
        writers = []
        if plan.num_parts > 1:  # a log of one part is sorted in memory, without the detour over the disk
            scratch.mkdir()
            for part in range(plan.num_parts):
                writer = parquet_writer(scratch / f"{part}.parquet", arrow, compression="lz4")
                writers.append(open_files.enter_context(writer))
        start = 0
        for frame in source.frames(what="rules"):
            rows = slice(start, start + frame.height)
            start = rows.stop
            duplicate = pl.Series(DUPLICATE, plan.duplicate[rows])
            judged = frame.select(*columns.values(), *marks).with_columns(duplicate)
            bad = judged.select(pl.any_horizontal(every).alias("bad"))["bad"]
            bad_rows[rows] = bad.to_numpy()
            if bool(bad.any()):
                why.append(judged.filter(bad).select(every))
                for name, count in zip(every, why[-1].sum().row(0), strict=True):
                    if count:
                        reasons[name[1:]] += count
            judged = judged.drop(every)
            for part in range(plan.num_parts):
                mine = judged.filter(~bad & pl.Series(plan.part[rows] == part))
                if not mine.height:
                    continue
                if writers:
                    writers[part].write_table(mine.to_arrow().cast(arrow))
                else:
                    parts[part].append(mine)
    with QuarantineWriter(quarantine / "quarantine.parquet", source.log, source.columns, stamp) as out:
        _write_quarantine(source, bad_rows, why, out)
    whole = (read_frame(scratch / f"{i}.parquet") for i in range(plan.num_parts)) if writers else _joined(parts)
    _write_clean(clean / "clean.parquet", arrow, whole)
    if writers:
        shutil.rmtree(scratch)
    return bad_rows


def _write_originals(
    source: RawRows, good: npt.NDArray[np.bool_], clean: Path, clean_keys: Keys, snapshot_id: str
) -> None:
    """Make a raw log folder of ``clean``: the clean rows as they were in the source, in source order."""
    columns = [ROW_ID, SOURCE_ROW, *source.columns]
    with parquet_file(source.log) as file:
        schema = pa.schema([file.schema_arrow.field(name).remove_metadata() for name in columns])
    with parquet_writer(clean / "log.parquet", schema, compression="zstd") as out:
        for _, batch in source.rows_at(columns, good):
            out.write_table(pa.Table.from_arrays(batch.columns, schema=schema))
    if not np.array_equal(np.sort(_read_keys(clean / "log.parquet")), np.sort(clean_keys)):
        raise RowsLostError(f"{source.log}: the originals of the clean rows are not these rows: report this as a bug")
    rows = len(clean_keys)
    described = {"source": "replay", "schema_name": source.schema.name, "rows": rows, "unparsable_rows": 0}
    write_json(clean / "snapshot.json", {**described, "snapshot_id": snapshot_id, "limit": 0, "seed": 0, "files": {}})


def _write_quarantine(
    source: RawRows, bad_rows: npt.NDArray[np.bool_], why: list[pl.DataFrame], out: QuarantineWriter
) -> None:
    """Read the bad rows with all their columns and write them with their reasons, ``why``, in file order."""
    if not why:
        return
    broken_rules, start = pl.concat(why), 0
    for rows, batch in source.rows_at(out.source_columns, bad_rows):
        out.write(batch, broken_rules.slice(start, len(rows)))
        start += len(rows)


def _joined(parts: list[list[pl.DataFrame]]) -> Iterable[pl.DataFrame]:
    for frames in parts:
        if frames:
            yield pl.concat(frames)
            frames.clear()


def _write_clean(path: Path, arrow: pa.Schema, parts: Iterable[pl.DataFrame]) -> None:
    """Third pass: sort each part and append it."""
    with parquet_writer(path, arrow, compression="zstd") as out:
        for part in parts:
            for piece in part.sort(EVENT_TIME, ROW_ID).iter_slices(250_000):
                out.write_table(piece.to_arrow().cast(arrow))


def _unparsable_keys(path: Path) -> tuple[Keys, int]:
    if not path.exists():
        return np.zeros(0, np.uint64), 0
    keys = _read_keys(path)
    return keys, len(keys)


def _read_keys(path: Path) -> Keys:
    with parquet_file(path) as file:
        batches = [row_keys(frame_of(b)[ROW_ID], where=str(path)) for b in file.iter_batches(columns=[ROW_ID])]
    return np.concatenate([np.zeros(0, np.uint64), *batches])


def _span(path: Path) -> dict[str, Any]:
    """First and last event (ISO 8601, UTC) and the click rate of a clean log; null when it is empty."""
    found = scan_frame(path).select(
        first=pl.col(EVENT_TIME).min(), last=pl.col(EVENT_TIME).max(), rate=pl.col(LABEL).cast(pl.Float64).mean()
    )
    first, last, rate = found.collect().row(0)
    return {
        "first_event": first.isoformat() if first else None,
        "last_event": last.isoformat() if last else None,
        "click_rate": rate,
    }
