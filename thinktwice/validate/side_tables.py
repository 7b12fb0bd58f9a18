"""Side tables of users and items: their split into clean and quarantined rows, and the attributes they give to impressions.

The raw log folder has ``users.parquet`` and ``items.parquet`` as they were read, the clean log ``clean_users.parquet`` and
``clean_items.parquet``, and the quarantine the rows that broke a rule, in ``quarantined_users.parquet`` and
``quarantined_items.parquet``, beside the tables as they were read, so that its rows can be judged again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from thinktwice.errors import DataError, RowsLostError
from thinktwice.parquet import parquet_writer, read_frame, read_schema
from thinktwice.schema.columns import check_named, table_columns
from thinktwice.schema.fields import EVENT_TIME, TABLE_OF, VALID_FROM
from thinktwice.schema.limits import EARLIEST_US
from thinktwice.schema.log import LogSchema
from thinktwice.schema.tables import Side as Side
from thinktwice.schema.tables import raw_name
from thinktwice.validate.layout import arrow_schema, clean_table_columns
from thinktwice.validate.parse import canonical_table, read_table_columns, violations
from thinktwice.validate.quarantine import QuarantineWriter, Stamp, exemplify
from thinktwice.validate.raw_rows import RawRows, open_columns, rows_where
from thinktwice.validate.row_keys import key_hash, read_keys
from thinktwice.validate.rules import table_rules

CLEAN_FILE = "clean.parquet"


@dataclass(frozen=True)
class TableSplit:
    """Counts of the rows of one side table; hashes and reasons as in :class:`~thinktwice.validate.split.SplitResult`."""

    rows_in: int
    rows_clean: int
    rows_quarantined: int
    key_hash_in: str
    key_hash_out: str
    reasons: dict[str, int]
    examples: dict[str, str] = field(default_factory=dict)


def raw_table(folder: Path, side: Side) -> Path:
    """A side table as it was read."""
    return folder / raw_name(side)


def clean_table(folder: Path, side: Side) -> Path:
    """The rows of a side table that passed."""
    return folder / f"clean_{TABLE_OF[side]}.parquet"


def quarantined_table(folder: Path, side: Side) -> Path:
    """The rows of a side table that broke a rule."""
    return folder / f"quarantined_{TABLE_OF[side]}.parquet"


def split_tables(
    raw_dir: Path, schema: LogSchema, clean: Path, quarantine: Path, stamp: Stamp
) -> dict[Side, TableSplit]:
    """Split every side table of a raw log folder into ``clean`` and ``quarantine``.

    Raises:
        SchemaError: the schema does not fit the columns of a table. DataError: a table is missing or damaged.
        RowsLostError: rows in and rows out differ.
    """
    out = {
        side: _split(raw_table(raw_dir, side), schema, side, clean, quarantine, stamp) for side in schema.side_tables
    }
    copy_tables(raw_dir, quarantine, schema)
    return out


def copy_tables(source: Path, target: Path, schema: LogSchema) -> None:
    """Put the side tables as they were read into another folder; a link where the file system can."""
    for side in schema.side_tables:
        raw = raw_table(source, side)
        try:
            os.link(raw, raw_table(target, side))
        except OSError:
            shutil.copyfile(raw, raw_table(target, side))


def _split(log: Path, schema: LogSchema, side: Side, clean: Path, quarantine: Path, stamp: Stamp) -> TableSplit:
    if not log.is_file():
        raise DataError(f"{log} is missing, but the schema names a table of {TABLE_OF[side]}: ingest the log again")
    named = table_columns(schema, side)
    columns = open_columns(log)
    check_named(named, schema.name, columns, str(log))
    rules = table_rules(schema, side)
    order = tuple(name for name in named if name in columns.names)
    rows = RawRows(log, Path(), schema, tuple(columns.names), order, rules, (), None)
    counts = {rule.id: 0 for rule in rules}
    examples: dict[str, str] = {}
    hidden = schema.table_key(side) if side == "user" else None
    marks = violations(rules, as_of=None)
    arrow = arrow_schema(schema, clean_table_columns(schema, side))
    bad_rows: list[np.ndarray] = []
    why: list[pl.DataFrame] = []
    with parquet_writer(clean_table(clean, side), arrow, compression="zstd") as out:
        for batch in rows.batches(what=TABLE_OF[side]):
            read = read_table_columns(schema, side, batch)
            checked = read.select(*marks)
            bad = checked.select(pl.any_horizontal(pl.all()).alias("bad"))["bad"]
            bad_rows.append(bad.to_numpy())
            if bad.any():
                why.append(checked.filter(bad))
                for name, count in zip(why[-1].columns, why[-1].sum().row(0), strict=True):
                    counts[name[1:]] += count or 0
                exemplify(why[-1], rows_where(batch, bad_rows[-1]), rules, hidden, examples)
            out.write_table(canonical_table(schema, side, read).filter(~bad).to_arrow().cast(arrow))
    bad_mask = np.concatenate([np.zeros(0, bool), *bad_rows])
    with QuarantineWriter(quarantined_table(quarantine, side), log, tuple(columns.names), stamp) as out_bad:
        start = 0
        broken_rules = pl.concat(why) if why else pl.DataFrame()
        for positions, batch in rows.rows_at(out_bad.source_columns, bad_mask) if why else ():
            out_bad.write(batch, broken_rules.slice(start, len(positions)))
            start += len(positions)
    keys_in = read_keys(log)
    clean_keys, bad_keys = read_keys(clean_table(clean, side)), read_keys(quarantined_table(quarantine, side))
    keys_out = np.concatenate([clean_keys, bad_keys])
    if not np.array_equal(np.sort(keys_in), np.sort(keys_out)):
        raise RowsLostError(
            f"{log}: {len(keys_in)} rows in, but {len(clean_keys)} clean and {len(bad_keys)} quarantined: report this as a bug"
        )
    return TableSplit(
        rows_in=len(keys_in),
        rows_clean=len(clean_keys),
        rows_quarantined=len(bad_keys),
        key_hash_in=key_hash(keys_in),
        key_hash_out=key_hash(keys_out),
        reasons={rule: count for rule, count in counts.items() if count},
        examples=examples,
    )


def first_valid(clean: Path, schema: LogSchema) -> dict[Side, pl.DataFrame]:
    """For each side table, ``key`` and ``first``: the microsecond from which the key has a row; for :func:`unmatched`."""
    out: dict[Side, pl.DataFrame] = {}
    for side in schema.side_tables:
        key = schema.key_of(side)
        assert key is not None
        rows = read_frame(clean_table(clean, side), columns=[key, VALID_FROM])
        out[side] = rows.group_by(pl.col(key).alias("key")).agg(first=pl.col(VALID_FROM).min().dt.epoch("us"))
    return out


def unmatched(rows: pl.DataFrame, first: pl.DataFrame) -> pl.Series:
    """[R] whether a row (``key``, ``micros``) has a key without a row of the table that is valid at its time."""
    joined = rows.join(first, on="key", how="left", maintain_order="left")
    return joined.select(
        pl.col("key").is_not_null() & ~(pl.col("first") <= pl.col("micros")).fill_null(False)
    ).to_series()


def read_clean(
    clean_dir: Path, schema: LogSchema, columns: Collection[str], *, convert: Callable[[pl.Expr], pl.Expr] | None = None
) -> pl.DataFrame:
    """Columns of a clean log in its order; those of side tables as they are valid at the time of each impression.

    ``convert`` replaces each column, before the rows of a table are repeated for its impressions.
    """
    path = clean_dir / CLEAN_FILE
    wanted = list(dict.fromkeys(columns))
    frame_columns = wanted
    logged = read_schema(path).names
    tables: list[tuple[str, pl.DataFrame]] = []
    for side in schema.side_tables:
        from_table = [c for c in wanted if c not in logged and c in clean_table_columns(schema, side)[3:]]
        if from_table:
            key = str(schema.key_of(side))
            table = read_frame(clean_table(clean_dir, side), columns=[key, VALID_FROM, *from_table])
            tables.append((key, _converted(table, from_table, convert)))
            frame_columns = [*(c for c in frame_columns if c not in from_table), key, EVENT_TIME]
    frame = read_frame(path, columns=list(dict.fromkeys(frame_columns)))
    frame = _converted(frame, [c for c in wanted if c in frame.columns], convert)
    for key, table in tables:
        frame = with_attributes(frame, table, key)
    return frame.select(wanted)


def _converted(frame: pl.DataFrame, columns: list[str], convert: Callable[[pl.Expr], pl.Expr] | None) -> pl.DataFrame:
    return frame if convert is None else frame.with_columns(convert(pl.col(name)).alias(name) for name in columns)


def with_attributes(frame: pl.DataFrame, table: pl.DataFrame, key: str) -> pl.DataFrame:
    """The rows [R] of ``frame`` with the columns of their key's row in ``table`` that is valid at their ``event_time``."""
    if bool((table[VALID_FROM].dt.epoch("us") == EARLIEST_US).all()):
        return frame.join(table.drop(VALID_FROM), on=key, how="left", maintain_order="left")
    if not frame[EVENT_TIME].is_sorted():
        raise DataError("the clean log is not in the order of its times: validate the log again")
    table = table.sort(VALID_FROM).rename({VALID_FROM: EVENT_TIME})
    return frame.join_asof(table, on=EVENT_TIME, by=key, strategy="backward", check_sortedness=False)


def share_quarantined(tables: Mapping[Side, TableSplit]) -> float:
    """The largest share of quarantined rows of a table; 0 without tables or rows."""
    return max((t.rows_quarantined / t.rows_in for t in tables.values() if t.rows_in), default=0.0)
