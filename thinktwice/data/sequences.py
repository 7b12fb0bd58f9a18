# ruff: noqa: S608 - names in queries come from the schema (letters, digits, _) and are quoted
"""Sequences: the latest values each user clicked (or saw), newest first, after every instant that changed them.

A sequence is valid from one microsecond after its newest click. Impressions of the same instant (one slate) therefore never
see each other's clicks, and all events of one instant are added together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thinktwice.parquet import parquet_writer
from thinktwice.query import quoted, source
from thinktwice.schema import EVENT_TIME, LABEL, ROW_ID, LogSchema, Sequence

BATCH_ROWS = 100_000  # events in memory at a time
TIME = pa.timestamp("us", tz="UTC")

Ints = npt.NDArray[np.int64]


def write_sequences(
    connection: duckdb.DuckDBPyConnection, clean: Path, schema: LogSchema, items: Path, target: Path
) -> None:
    """Write one row per user and instant that changed a sequence of that user to ``target``, sorted by user and time.

    Columns: the user key, ``event_timestamp`` and ``created_timestamp`` (the instant plus 1 us), then per sequence of
    the schema a list of strings, newest first, cut to its length. Within one instant the higher ``row_id`` counts as
    newer. Missing values are left out. ``items`` is the feature table of items, which is read for the fields of a side table.
    """
    key = schema.key_of("user")
    assert key is not None
    out_schema = pa.schema(
        [
            pa.field(key, pa.string()),
            pa.field("event_timestamp", TIME),
            pa.field("created_timestamp", TIME),
            *(pa.field(s.name, pa.list_(pa.string())) for s in schema.computed_sequences),
        ]
    )
    with parquet_writer(target, out_schema, compression="zstd") as writer:
        for users, times, lists in _blocks(connection, clean, schema, items, key):
            at = pa.array(times + 1).cast(TIME)
            writer.write_table(pa.Table.from_arrays([users, at, at, *lists], schema=out_schema))


def _blocks(
    connection: duckdb.DuckDBPyConnection, clean: Path, schema: LogSchema, items: Path, key: str
) -> Iterator[tuple[pa.Array, Ints, list[pa.Array]]]:
    """Yield (user ids, instants in us, one list array per sequence) block by block, in order."""
    source_fields = sorted({s.of for s in schema.computed_sequences})
    from_table = {f.name for f in schema.table_fields("item")}
    columns = ", ".join(f"{'i' if c in from_table else 'c'}.{quoted(c)}" for c in source_fields)
    joined = ""
    if from_table & set(source_fields):
        item = quoted(str(schema.key_of("item")))
        joined = f"ASOF LEFT JOIN {source(items)} i ON c.{item} = i.{item} AND c.{EVENT_TIME} >= i.event_timestamp"
    only_clicks = f"AND c.{LABEL} = 1" if all(s.clicks_only for s in schema.computed_sequences) else ""
    reader = connection.sql(
        f"SELECT c.{quoted(key)} AS key, epoch_us(c.{EVENT_TIME}) AS instant, c.{LABEL} = 1 AS clicked, {columns} "
        f"FROM {source(clean)} c {joined} WHERE c.{quoted(key)} IS NOT NULL {only_clicks} "
        f"ORDER BY c.{quoted(key)}, c.{EVENT_TIME}, c.{ROW_ID}"
    ).to_arrow_reader(BATCH_ROWS)
    longest = max(s.length for s in schema.computed_sequences)
    pending: pa.Table | None = None  # events of the last user that later rows may need
    done_until: tuple[str, int] | None = None  # last (user, instant) written; earlier events are context only
    for batch in reader:
        table = pa.Table.from_batches([batch])
        table = table if pending is None else pa.concat_tables([pending, table])
        # The last instant may continue in the next batch: hold it back.
        keys, times = table["key"], table["instant"].to_numpy()
        last_user = keys[-1].as_py()
        complete = _tail_start(keys, times)
        yield from _finished(table.slice(0, complete), schema, done_until)
        if complete:
            done_until = (keys[complete - 1].as_py(), int(times[complete - 1]))
        pending = table.slice(_context_start(table, last_user, complete, longest, schema))
    if pending is not None:
        yield from _finished(pending, schema, done_until)


def _tail_start(keys: pa.ChunkedArray, times: Ints) -> int:
    """First row of the last (user, instant) of the table."""
    last = keys[-1].as_py()
    row = len(times) - 1
    while row > 0 and times[row - 1] == times[-1] and keys[row - 1].as_py() == last:
        row -= 1
    return row


def _context_start(table: pa.Table, user: str, complete: int, longest: int, schema: LogSchema) -> int:
    """First row the next batch needs: far enough back for every sequence of the user whose events continue."""
    keys = table["key"]
    enters = [_enters(table, s) for s in schema.computed_sequences]
    missing = [s.length for s in schema.computed_sequences]
    row = complete
    while row > 0 and any(m > 0 for m in missing) and keys[row - 1].as_py() == user:
        row -= 1
        missing = [m - int(e[row]) for m, e in zip(missing, enters, strict=True)]
    return row


def _enters(table: pa.Table, sequence: Sequence) -> npt.NDArray[np.bool_]:
    """[n] whether an event is added to the sequence."""
    valid = table[sequence.of].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
    if sequence.clicks_only:
        return valid & table["clicked"].to_numpy()
    return valid


def _finished(
    table: pa.Table, schema: LogSchema, done_until: tuple[str, int] | None
) -> Iterator[tuple[pa.Array, Ints, list[pa.Array]]]:
    """The output rows of ``table`` (whole instants, sorted) that come after ``done_until``."""
    if not table.num_rows:
        return
    keys = table["key"].combine_chunks()
    times: Ints = table["instant"].to_numpy()
    user: Ints = keys.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    rows = len(times)
    starts = np.r_[True, user[1:] != user[:-1]]
    first_row = np.maximum.accumulate(np.where(starts, np.arange(rows), 0))  # [n] first row of the user
    last_of_instant = np.r_[(user[1:] != user[:-1]) | (times[1:] != times[:-1]), True]
    enters = [_enters(table, s) for s in schema.computed_sequences]
    any_enters = np.logical_or.reduce(enters)
    # An instant is written when any of its events is added to any sequence.
    instant = np.r_[0, np.cumsum(last_of_instant)[:-1]]
    changed = np.bincount(instant, weights=any_enters) > 0
    ends = np.flatnonzero(last_of_instant)[changed]
    if done_until is not None and keys[0].as_py() == done_until[0]:
        ends = ends[(user[ends] != user[0]) | (times[ends] > done_until[1])]
    if not len(ends):
        return
    lists = [
        _newest_first(table[s.of], e, ends, first_row, s.length)
        for s, e in zip(schema.computed_sequences, enters, strict=True)
    ]
    yield keys.take(pa.array(ends)), times[ends], lists


def _newest_first(
    values: pa.ChunkedArray, enters: npt.NDArray[np.bool_], ends: Ints, first_row: Ints, length: int
) -> pa.Array:
    """List array [len(ends)]: the up to ``length`` newest entering values of the user up to and with each end row."""
    upto = np.cumsum(enters)  # [n] entering events up to and with this row, over all users
    before = np.r_[0, upto][first_row[ends]]
    newest = upto[ends] - 1  # position among the entering events
    sizes = np.minimum(newest + 1 - before, length)
    offsets = np.r_[0, np.cumsum(sizes)]
    back = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    picked = np.flatnonzero(enters)[np.repeat(newest, sizes) - back]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.combine_chunks().take(pa.array(picked)))
