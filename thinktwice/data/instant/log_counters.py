"""Counters of every row of a log in one pass: sorts and sums of whole columns, never a loop over rows.

Outcomes are ranked by the instant at which they are known. For a kind of key (user, item, user and topic, item and attribute) the
ranks of each key's outcomes are contiguous and ascending. A row at ``t`` sees those whose rank is below the number of
outcomes of the whole log known before ``t``, so counts are differences of positions, and sums are differences of running
totals.

Shapes: R rows in time order, T topics, A attributes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from thinktwice.data.instant.definition import RESIDUAL_BITS, Crossed, Definition, Side
from thinktwice.data.instant.keys import Hashes, Ints, key_hash, ties
from thinktwice.data.instant.ranks import Codes, by_code, composites, key_positions, low_part, running_total
from thinktwice.data.instant.values import Sums, counters, log_rate, residuals, smoothed
from thinktwice.schema import EVENT_TIME, LABEL
from thinktwice.schema.values import spelled

_NEVER_KNOWN = 2**62
CHUNK_ROWS = 250_000  # rows per chunk of counters

Slots = npt.NDArray[np.int16]


@dataclass(frozen=True)
class LogRows:
    """The columns of a log that counters are computed from, in time order.

    time [R] int64: microseconds, ascending
    clicked [R] bool
    users, items [R] int32: codes, -1 for a missing id; [0] without such keys
    user_ids, item_ids: spelled id of each code
    topics, attributes [R] int16 each: slots, -1 for none
    outcomes [R] bool: rows whose outcomes count; None: all
    """

    time: Ints
    clicked: npt.NDArray[np.bool_]
    users: Codes
    items: Codes
    user_ids: pl.Series
    item_ids: pl.Series
    topics: tuple[Slots, ...]
    attributes: tuple[Slots, ...]
    outcomes: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.time)

    def known_at(self, definition: Definition) -> Ints:
        """Instants [R] at which the outcomes are known; after all rows for those that do not count."""
        at = self.time + np.where(self.clicked, definition.click_delay, definition.no_click_delay)
        return at if self.outcomes is None else np.where(self.outcomes, at, _NEVER_KNOWN)


def log_rows(column: Callable[[str], pl.Series], definition: Definition) -> LogRows:
    """Read the columns of a clean log, one at a time.

    Args:
        column: returns a column of the log by name; the rows are in time order.

    Raises:
        ValueError: the rows are not in time order.
    """
    time = column(EVENT_TIME).dt.epoch("us").to_numpy().astype(np.int64, copy=False)
    if (time[1:] < time[:-1]).any():
        raise ValueError("the rows of a log must be in the order of their time")
    users, user_words = _codes(column, definition.user, len(time))
    items, item_words = _codes(column, definition.item, len(time))
    return LogRows(
        time=time,
        clicked=column(LABEL).to_numpy() == 1,
        users=users,
        items=items,
        user_ids=user_words,
        item_ids=item_words,
        topics=tuple(_slots(column, c, len(time)) for c in definition.topics),
        attributes=tuple(_slots(column, c, len(time)) for c in definition.attributes),
    )


def log_counters(
    rows: LogRows, definition: Definition, scratch: Path, chunk_rows: int = CHUNK_ROWS
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the counters of all rows in their order, float32 [up to ``chunk_rows``, C]; NaN is unknown.

    Memory: about 120 bytes per row in addition to ``rows``, whatever the number of counters. Counters of the user are
        written to an unnamed file in the folder ``scratch``, 4 bytes each.
    """
    ranked = rank(rows, definition)
    parts = [slice(start, min(start + chunk_rows, len(rows))) for start in range(0, len(rows), chunk_rows)]
    users, items = _blocks("user", rows, definition, ranked, parts), _blocks("item", rows, definition, ranked, parts)
    if definition.user is None or definition.item is None:
        yield from users
        yield from items
        return
    with tempfile.TemporaryFile(dir=scratch) as file:
        for block in users:
            file.write(block.data)
        file.seek(0)
        width = len(definition.counters_of("user"))
        for block in items:
            first = np.frombuffer(file.read(4 * width * len(block)), np.float32).reshape(len(block), width)
            yield np.concatenate([first, block], axis=1)


def _blocks(
    side: Side, rows: LogRows, definition: Definition, ranked: RankedOutcomes, parts: list[slice]
) -> Iterator[npt.NDArray[np.float32]]:
    """Counters of one side, block by block; none when the log has no such keys."""
    if (definition.user if side == "user" else definition.item) is None:
        return
    codes, slots = (rows.users, rows.topics) if side == "user" else (rows.items, rows.attributes)
    totals = _Side(codes, definition.crossed(side), slots, ranked, residual=side == "user")
    for part in parts:
        yield counters(totals.sums(part, definition.last), definition.last, side)


@dataclass(frozen=True)
class RankedOutcomes:
    """Outcomes ranked by the instant at which they are known; rank r of R.

    order [R]: row of each rank
    at [R]: instant at which it is known
    first [R]: first rank of the same instant
    clicked [R]
    clicks [R + 1]: clicks of lower ranks
    residual [R]
    bits: number of bits of a rank
    time [R]: of the rows
    before: per row, the number of outcomes known before it, then before the first instant of each of its windows
    """

    order: Codes
    at: Ints
    first: Codes
    clicked: npt.NDArray[np.bool_]
    clicks: Codes
    residual: Codes
    bits: int
    time: Ints
    before: tuple[Codes, ...]


def rank(rows: LogRows, definition: Definition) -> RankedOutcomes:
    """Rank the outcomes of a log by the instant at which they are known."""
    size = len(rows)
    at = rows.known_at(definition)
    order = np.argsort(at, kind="stable").astype(np.int32)
    at = at[order]
    fresh = np.r_[True, at[1:] != at[:-1]] if size else np.zeros(0, np.bool_)
    first = np.maximum.accumulate(np.where(fresh, np.arange(size, dtype=np.int32), np.int32(0)))
    clicked = rows.clicked[order]
    clicks = running_total(clicked, np.arange(size, dtype=np.int32), np.int32)
    bits = max(size.bit_length(), 1)
    residual = _residuals(rows, order, first, clicks, clicked, bits)
    # Outcomes of one instant are ordered by their tie-break, then clicks last. Ranks change only within an instant.
    sort_key = row_ties(rows)[order]
    sort_key <<= RESIDUAL_BITS + 2
    sort_key += residual + (1 << RESIDUAL_BITS)
    sort_key |= first.astype(np.int64) << 32
    moved = np.argsort(sort_key, kind="stable")
    order, residual, clicked = order[moved], residual[moved], clicked[moved]
    clicks = running_total(clicked, np.arange(size, dtype=np.int32), np.int32)
    del sort_key, moved
    instants = [rows.time] + [
        (rows.time // window.width - (window.buckets - 1)) * window.width for window in definition.windows
    ]
    before = tuple(np.searchsorted(at, instant, side="left").astype(np.int32) for instant in instants)
    return RankedOutcomes(order, at, first, clicked, clicks, residual, bits, rows.time, before)


def _residuals(
    rows: LogRows, order: Codes, first: Codes, clicks: Codes, clicked: npt.NDArray[np.bool_], bits: int
) -> Codes:
    """Residual of each rank: click minus the item's rate just before the outcome was known, [R] int32 in units of
    ``2**-RESIDUAL_BITS``.

    An item without an earlier outcome has the rate of the whole log.
    """
    rate = log_rate(clicks[first].astype(np.int64), first.astype(np.int64))  # [R] of the log, before each rank
    if len(rows.items):
        codes = rows.items[order]
        outcomes = by_code(codes, bits)
        ranks = low_part(outcomes, bits)
        codes = codes[ranks]
        reach = np.searchsorted(outcomes, composites(codes, first[ranks], bits)).astype(np.int32)
        views = reach - np.searchsorted(outcomes, composites(codes, 0, bits)).astype(np.int32)
        del outcomes, codes
        running = running_total(clicked, ranks, np.int32)
        towards = rate[ranks]
        counted = views > 0
        towards[counted] = rate[ranks[reach[counted] - 1]]
        smooth = smoothed((running[reach] - running[reach - views]).astype(np.int64), views.astype(np.int64), towards)
        rate[ranks] = np.where(counted, smooth, towards)
    return residuals(clicked, rate).astype(np.int32)


def row_ties(rows: LogRows) -> Ints:
    """[R] tie-break of every row."""
    users, items = (
        id_hashes(codes, ids, len(rows)) for codes, ids in ((rows.users, rows.user_ids), (rows.items, rows.item_ids))
    )
    return ties(users, items, rows.time)


def id_hashes(codes: Codes, ids: pl.Series, rows: int) -> Hashes:
    """Hash of the id of every row [R], 0 for a missing one."""
    if not len(codes):
        return np.zeros(rows, np.uint64)
    return np.array([*(key_hash(word) for word in ids), 0], np.uint64)[codes]


class _Side:
    """Running totals over the outcomes of one side's keys, and the positions of every row in them."""

    def __init__(
        self,
        codes: Codes,
        crossed: tuple[Crossed, ...],
        slots: tuple[Slots, ...],
        known: RankedOutcomes,
        *,
        residual: bool,
    ) -> None:
        self._codes, self._known, self._residual = codes, known, residual
        self._ranks, self._start, self._reach = key_positions(codes, codes[known.order], known.bits, known.before)
        self._clicks = running_total(known.clicked, self._ranks, np.int32)
        self._totals = running_total(known.residual, self._ranks, np.int64) if residual else self._clicks
        # The latest impression among a key's outcomes so far: rows are in time order, outcomes of a key are contiguous.
        rows = known.order[self._ranks]
        latest = composites(codes[rows], rows, known.bits)
        np.maximum.accumulate(latest, out=latest)
        self._latest = low_part(latest, known.bits)
        self._crossed = [
            _crossed(codes, c.slots, slot, known, residual=residual) for c, slot in zip(crossed, slots, strict=True)
        ]

    def sums(self, part: slice, last: tuple[int, ...]) -> Sums:
        """The sums of the side as of the instants of some rows."""
        known, start, now = self._known, self._start[part], self._known.time[part]
        reach, *opened = (positions[part] for positions in self._reach)
        views = (reach - start).astype(np.int64)
        newest = np.where(views > 0, reach - 1, 0)
        nothing = not len(self._ranks)
        rank = np.zeros(len(now), np.int32) if nothing else self._ranks[newest]
        since = [start] if self._residual else []
        since += [np.maximum(reach - k, start) for k in last] + opened
        totals = [self._totals[reach].astype(np.int64) - self._totals[first] for first in since]
        return Sums(
            views=views,
            clicks=(self._clicks[reach] - self._clicks[start]).astype(np.int64),
            log_views=known.first[rank].astype(np.int64),
            log_clicks=known.clicks[known.first[rank]].astype(np.int64),
            since=_columns(
                [now - (now if nothing else known.time[self._latest[newest]]), now - known.at[rank]], len(now)
            ),
            window_views=_columns([(reach - first).astype(np.int64) for first in opened], len(now)),
            sums=_columns(totals, len(now)),
            crossed_views=_columns([views[part].astype(np.int64) for views, _ in self._crossed], len(now)),
            crossed_sums=_columns([sums[part].astype(np.int64) for _, sums in self._crossed], len(now)),
        )


def _crossed(codes: Codes, slots: int, slot: Slots, ranked: RankedOutcomes, *, residual: bool) -> tuple[Codes, Ints]:
    """For every row: the number of outcomes of its key and slot (-1 without a slot), and the sum of their residuals or
    clicks."""
    codes_of_pairs = codes.astype(np.int64)
    codes_of_pairs *= slots
    codes_of_pairs += slot
    codes_of_pairs[(codes < 0) | (slot < 0)] = -1
    ranks, start, (reach,) = key_positions(codes_of_pairs, codes_of_pairs[ranked.order], ranked.bits, ranked.before[:1])
    running = (
        running_total(ranked.residual, ranks, np.int64) if residual else running_total(ranked.clicked, ranks, np.int32)
    )
    return np.where(codes_of_pairs < 0, np.int32(-1), reach - start), running[reach] - running[start]


def _columns(columns: list[Ints], rows: int) -> Ints:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), np.int64)


def _codes(column: Callable[[str], pl.Series], name: str | None, rows: int) -> tuple[Codes, pl.Series]:
    """Codes of an id column and the spelled id of every code."""
    if name is None:
        return np.zeros(0, np.int32), pl.Series(dtype=pl.String)
    encoded = spelled(column(name).to_arrow()).to_arrow().dictionary_encode()
    codes = encoded.indices.cast("int32").fill_null(-1).to_numpy(zero_copy_only=False)
    words = pl.from_arrow(encoded.dictionary)
    assert isinstance(words, pl.Series) and len(codes) == rows
    return codes, words


def _slots(column: Callable[[str], pl.Series], crossed: Crossed, rows: int) -> Slots:
    codes, words = _codes(column, crossed.field, rows)
    slots = np.array([crossed.slot(word) for word in words] + [-1], np.int16)
    return slots[codes]
