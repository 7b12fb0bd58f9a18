"""Split of a raw log into a clean log and a quarantine, with a proof that nothing was lost.

Three passes over the parquet file, each in bounded memory (chunks of rows; only four numbers per row of the log are kept in
memory, so ten million rows need well under 3 GB):

1. ids, times and two hashes of every row: order of the clean log, and duplicates;
2. every rule on every row: bad rows are written to the quarantine with all reasons and their unchanged source columns, good
   rows to the part of the clean log with their time;
3. each part is sorted by (event_time, row_id) and appended to the clean log.

The proof is read back from the files just written: the row ids of both, sorted together, equal those of the input.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from thinktwice.errors import DataError, RowsLostError
from thinktwice.files import atomic_dir, read_json, write_json
from thinktwice.parquet import parquet_writer, read_frame, read_table, scan_frame
from thinktwice.schema.fields import EVENT_TIME, LABEL, ROW_ID
from thinktwice.schema.log import LogSchema, load_schema
from thinktwice.schema.tables import stored_schema
from thinktwice.validate.layout import arrow_schema, clean_columns
from thinktwice.validate.parse import (
    SOURCE_ROW,
    broken,
    canonical,
    key_and_time,
    read_columns,
    violations,
)
from thinktwice.validate.plan import SplitPlan, plan_of
from thinktwice.validate.quarantine import QuarantineWriter, Stamp, exemplify, original_columns, write_unparsable
from thinktwice.validate.raw_rows import RawRows, frame_of, open_rows, parquet_file, rows_where
from thinktwice.validate.row_keys import Keys, key_hash, read_keys
from thinktwice.validate.rules import UNSPLITTABLE, rule_set_version, unmatched_rule
from thinktwice.validate.side_tables import Side, TableSplit, copy_tables, first_valid, split_tables, unmatched

DUPLICATE = "!row:duplicate"


@dataclass(frozen=True)
class SplitResult:
    """Result of a split: counts and hashes of the rows. Hashes are order-free sums over row ids, as 16 hex digits."""

    rows_in: int
    rows_clean: int
    rows_quarantined: int
    key_hash_in: str
    key_hash_out: str
    reasons: dict[str, int]  # rule id -> rows that break it; a row counts once for each of its reasons
    rule_set_version: str
    notes: dict[str, int] = field(default_factory=dict)  # rule id -> rows that break it but are clean
    examples: dict[str, str] = field(default_factory=dict)  # rule id -> a value that breaks it; no ids of users
    tables: dict[Side, TableSplit] = field(default_factory=dict)  # the side tables, by entity


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
        as_of: time of the check; later impressions are quarantined. None: not checked.
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
    return _split(source, raw_dir, Path(clean_dir), Path(quarantine_dir), stamp, str(snapshot.get("snapshot_id", "")))


def replay(
    quarantine_dir: Path | str,
    clean_dir: Path | str,
    still_quarantined_dir: Path | str,
    *,
    run_id: str,
    schema_path: Path | str | None = None,
    tables_dir: Path | str | None = None,
    as_of: datetime | None = None,
    ingested_at: datetime | None = None,
) -> SplitResult:
    """Judge quarantined rows again, under the rules of ``schema_path`` (default: the schema kept in the quarantine).

    Rows that pass become a separate clean log; the others a new quarantine. The folder of the clean log is also a raw log
    folder (``log.parquet`` with the unchanged originals of the same rows), so a pipeline can read it as a source. A row
    that was quarantined as a duplicate stays one while the schema has that rule, because its first copy is outside the
    quarantine. It raises the same errors as :func:`split_log`. ``tables_dir`` has the side tables as they were read (default:
    those kept in the quarantine).
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
    clean, still = Path(clean_dir), Path(still_quarantined_dir)
    return _split(source, Path(tables_dir or quarantine_dir), clean, still, stamp, snapshot_id, keep_originals=True)


def _described(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): ingest or validate the log again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} contains no description of a log: ingest or validate the log again")
    return value


class _Counts(NamedTuple):
    """Counts made by :func:`_write_rows`; see :class:`SplitResult`."""

    reasons: dict[str, int]
    notes: dict[str, int]
    examples: dict[str, str]


def _split(
    source: RawRows,
    tables_dir: Path,
    clean_dir: Path,
    quarantine_dir: Path,
    stamp: Stamp,
    snapshot_id: str,
    *,
    keep_originals: bool = False,
) -> SplitResult:
    plan = plan_of(source)
    unparsable, num_unparsable = _unparsable_keys(source.unparsable)
    keys_in = np.sort(np.concatenate([plan.keys, unparsable]))
    if len(keys_in) == 0:
        raise DataError(f"{source.log} contains no row: give a log with at least one impression")
    if bool((keys_in[1:] == keys_in[:-1]).any()):
        raise DataError(
            f"{source.log}: two rows share one {ROW_ID}, so rows cannot be distinguished; ingest the log again"
        )
    counts = _Counts(dict.fromkeys((rule.id for rule in source.rules), 0), {}, {})
    counts.reasons[UNSPLITTABLE.id] = num_unparsable
    with atomic_dir(clean_dir) as clean, atomic_dir(quarantine_dir) as quarantine:
        tables = split_tables(tables_dir, source.schema, clean, quarantine, stamp)
        bad_rows = _write_rows(source, plan, stamp, clean, quarantine, counts)
        write_unparsable(source.unparsable, quarantine / "unparsable.parquet", stamp)
        for folder in (clean, quarantine):
            (folder / "schema.yaml").write_text(stored_schema(source.schema).to_yaml(), encoding="utf-8")
        clean_keys = read_keys(clean / "clean.parquet")
        bad_keys = np.concatenate([read_keys(quarantine / f"{n}.parquet") for n in ("quarantine", "unparsable")])
        keys_out = np.sort(np.concatenate([clean_keys, bad_keys]))
        result = SplitResult(
            rows_in=len(keys_in),
            rows_clean=len(clean_keys),
            rows_quarantined=len(bad_keys),
            key_hash_in=key_hash(keys_in),
            key_hash_out=key_hash(keys_out),
            reasons={rule: count for rule, count in counts.reasons.items() if count},
            rule_set_version=stamp.rule_set_version,
            notes={rule: count for rule, count in counts.notes.items() if count},
            examples=counts.examples,
            tables=tables,
        )
        if not np.array_equal(keys_in, keys_out) or result.key_hash_in != result.key_hash_out:
            raise RowsLostError(
                f"{source.log}: {result.rows_in} rows in, but {result.rows_clean} clean and {result.rows_quarantined} quarantined "
                f"with key hash {result.key_hash_out} instead of {result.key_hash_in}: nothing was written, report this as a bug"
            )
        if keep_originals:
            _write_originals(source, ~bad_rows, clean, clean_keys, snapshot_id)
            copy_tables(tables_dir, clean, source.schema)
        info: dict[str, Any] = {**asdict(result), "snapshot_id": snapshot_id, "run_id": stamp.run_id}
        info["schema_name"] = source.schema.name
        info["conserved"] = True
        write_json(clean / "clean.json", {**info, **_span(clean / "clean.parquet")})
        write_json(quarantine / "quarantine.json", {**info, "columns": original_columns(source.columns)})
    return result


def _write_rows(
    source: RawRows, plan: SplitPlan, stamp: Stamp, clean: Path, quarantine: Path, counts: _Counts
) -> npt.NDArray[np.bool_]:
    """Second and third pass, then the bad rows again with all their columns; returns which rows [R] are bad."""
    marks = violations(source.rules, as_of=source.as_of)
    notes = violations(source.noted, as_of=None)
    checks = [*(broken(rule) for rule in source.rules if rule.check not in ("splittable", "duplicate")), DUPLICATE]
    arrow = arrow_schema(source.schema, clean_columns(source.schema))
    parts: list[list[pl.DataFrame]] = [[] for _ in range(plan.num_parts)]
    scratch = clean / "parts"
    bad_rows = np.zeros(len(plan.keys), dtype=bool)
    valid = first_valid(clean, source.schema)
    why: list[pl.DataFrame] = []
    with ExitStack() as open_files:
        writers = []
        if plan.num_parts > 1:  # a log of one part is sorted in memory, without temporary files
            scratch.mkdir()
            for part in range(plan.num_parts):
                writer = parquet_writer(scratch / f"{part}.parquet", arrow, compression="lz4")
                writers.append(open_files.enter_context(writer))
        start = 0
        for batch in source.batches(what="rules"):
            rows = slice(start, start + batch.num_rows)
            start = rows.stop
            read = read_columns(source.schema, batch)
            checked = read.select(*marks).with_columns(pl.Series(DUPLICATE, plan.duplicate[rows]))
            bad = checked.select(pl.any_horizontal(checks).alias("bad"))["bad"]
            bad_rows[rows] = bad.to_numpy()
            if bool(bad.any()):
                why.append(checked.filter(bad).select(checks))
                _count(why[-1], counts.reasons)
                exemplify(
                    why[-1],
                    rows_where(batch, bad_rows[rows]),
                    source.rules,
                    _user_column(source.schema),
                    counts.examples,
                )
            if notes:
                _count(read.filter(~bad).select(*notes), counts.notes)
            for side, first in valid.items():
                rule = unmatched_rule(source.schema, side).id
                missing = unmatched(key_and_time(source.schema, read, side).filter(~bad), first)
                counts.notes[rule] = counts.notes.get(rule, 0) + int(missing.sum())
            judged = canonical(source.schema, read)
            for part in range(plan.num_parts):
                rows_of_part = judged.filter(~bad & pl.Series(plan.part[rows] == part))
                if not rows_of_part.height:
                    continue
                if writers:
                    writers[part].write_table(rows_of_part.to_arrow().cast(arrow))
                else:
                    parts[part].append(rows_of_part)
    with QuarantineWriter(quarantine / "quarantine.parquet", source.log, source.columns, stamp) as out:
        _write_quarantine(source, bad_rows, why, out)
    sorted_parts = (read_frame(scratch / f"{i}.parquet") for i in range(plan.num_parts)) if writers else _joined(parts)
    _write_clean(clean / "clean.parquet", arrow, sorted_parts)
    if writers:
        shutil.rmtree(scratch)
    return bad_rows


def _write_originals(
    source: RawRows, good: npt.NDArray[np.bool_], clean: Path, clean_keys: Keys, snapshot_id: str
) -> None:
    """Turn ``clean`` into a raw log folder: the clean rows unchanged and in source order."""
    columns = [ROW_ID, SOURCE_ROW, *source.columns]
    with parquet_file(source.log) as file:
        schema = pa.schema([file.schema_arrow.field(name).remove_metadata() for name in columns])
    with parquet_writer(clean / "log.parquet", schema, compression="zstd") as out:
        for _, batch in source.rows_at(columns, good):
            out.write_table(pa.Table.from_arrays(batch.columns, schema=schema))
    if not np.array_equal(np.sort(read_keys(clean / "log.parquet")), np.sort(clean_keys)):
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


def _count(broken_rows: pl.DataFrame, into: dict[str, int]) -> None:
    """Add the rows that break each rule; the columns are named by :func:`broken`."""
    for name, count in zip(broken_rows.columns, broken_rows.sum().row(0), strict=True):
        into[name[1:]] = into.get(name[1:], 0) + (count or 0)


def _user_column(schema: LogSchema) -> str | None:
    return None if schema.entities.user is None else schema.entities.user.source_column


def _unparsable_keys(path: Path) -> tuple[Keys, int]:
    if not path.exists():
        return np.zeros(0, np.uint64), 0
    keys = read_keys(path)
    return keys, len(keys)


def _span(path: Path) -> dict[str, Any]:
    """First and last event (ISO 8601, UTC) and the click rate of a clean log; null if it is empty."""
    span = scan_frame(path).select(
        first=pl.col(EVENT_TIME).min(), last=pl.col(EVENT_TIME).max(), rate=pl.col(LABEL).cast(pl.Float64).mean()
    )
    first, last, rate = span.collect().row(0)
    return {
        "first_event": first.isoformat() if first else None,
        "last_event": last.isoformat() if last else None,
        "click_rate": rate,
    }
