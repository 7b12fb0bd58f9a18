"""States at the end of a log, computed by whole columns: the initial content of a store that is then updated outcome by
outcome.

They are bit-identical to :func:`thinktwice.data.instant.state.apply` for the outcomes in the order in which they are known.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

from thinktwice.data.instant.definition import RECENT, RESIDUAL_BITS, Definition, Side
from thinktwice.data.instant.log_counters import LogRows, RankedOutcomes, id_hashes, rank, row_ties
from thinktwice.data.instant.ranks import Codes, Ints, by_code, low_part
from thinktwice.data.instant.recent import recent_outcomes
from thinktwice.data.instant.state import State, empty_states

CHUNK_KEYS = 50_000  # keys per chunk of states


def log_states(
    rows: LogRows, definition: Definition, side: Side, instant: int, chunk_keys: int = CHUNK_KEYS
) -> Iterator[tuple[pl.Series, State]]:
    """Yield ids [k] and states [k] of all users or items with an outcome known before ``instant``.

    Raises:
        ValueError: the log has no such keys.
    """
    ranked = rank(rows, definition)
    codes, ids = (rows.users, rows.user_ids) if side == "user" else (rows.items, rows.item_ids)
    if (definition.user if side == "user" else definition.item) is None:
        raise ValueError(f"the log has no {side}s")
    marks = _marks(rows, ranked, side)
    before = int(np.searchsorted(ranked.at, instant, side="left"))
    outcomes = by_code(codes[ranked.order[:before]], ranked.bits)
    code, ranks = outcomes >> ranked.bits, low_part(outcomes, ranked.bits)
    for first in range(0, len(ids), chunk_keys):
        part = slice(*np.searchsorted(code, [first, first + chunk_keys]))
        if part.start < part.stop:
            present, key = np.unique(code[part], return_inverse=True)
            yield ids.gather(present), _states(rows, definition, side, ranked, marks, ranks[part], key)


def log_state(rows: LogRows, definition: Definition, instant: int) -> State:
    """The state [1] of the whole log before an instant."""
    ranked, state = rank(rows, definition), empty_states(definition, "log")
    views = int(np.searchsorted(ranked.at, instant, side="left"))
    if views:
        first = int(ranked.first[views - 1])
        state[0] = (views, ranked.clicks[views], ranked.at[views - 1], first, ranked.clicks[first])
    return state


def recent_states(
    rows: LogRows, definition: Definition, instant: int, chunk_keys: int = CHUNK_KEYS
) -> Iterator[tuple[pl.Series, State]]:
    """Yield ids [k] and ``recent`` states [k] of all users with an outcome on an item, known before ``instant``."""
    lists = recent_outcomes(rows, definition)
    at = rows.time + np.where(rows.clicked, definition.click_delay, definition.no_click_delay)
    outcomes = lists.outcomes[at[lists.outcomes] < instant]
    code, hashes = rows.users[outcomes], id_hashes(rows.items, rows.item_ids, len(rows)).view(np.int64)
    for first in range(0, len(rows.user_ids), chunk_keys):
        part = slice(*np.searchsorted(code, [first, first + chunk_keys]))
        if part.start == part.stop:
            continue
        row = outcomes[part]
        present, key, sizes = np.unique(code[part], return_inverse=True, return_counts=True)
        slot = RECENT + np.arange(len(key)) - np.cumsum(sizes)[key]
        kept = slot >= 0
        key, slot, row = key[kept], slot[kept], row[kept]
        states = empty_states(definition, "recent", len(present))
        states["at"][key, slot], states["item"][key, slot] = at[row], hashes[row]
        states["clicked"][key, slot] = rows.clicked[row]
        yield rows.user_ids.gather(present), states


def _marks(rows: LogRows, ranked: RankedOutcomes, side: Side) -> Ints:
    """The mark of each rank's outcome in the list of the latest ones."""
    tie = row_ties(rows)[ranked.order]
    if side == "item":
        return (tie << 1) | ranked.clicked
    return (tie << (RESIDUAL_BITS + 2)) | (ranked.residual + (1 << RESIDUAL_BITS))


def _states(
    rows: LogRows, definition: Definition, side: Side, ranked: RankedOutcomes, marks: Ints, ranks: Codes, key: Ints
) -> State:
    """States of n keys.

    Args:
        ranks: outcomes of the keys in order, those of a key contiguous [m].
        key: key number of each outcome, ascending [m].
    """
    sizes = np.bincount(key)
    states, starts, last = empty_states(definition, side, len(sizes)), np.cumsum(sizes) - sizes, np.cumsum(sizes) - 1
    row, at, clicked = ranked.order[ranks], ranked.at[ranks], ranked.clicked[ranks].astype(np.int64)
    amount = ranked.residual[ranks].astype(np.int64) if side == "user" else clicked
    newest = ranks[last]
    states["views"], states["clicks"] = sizes, np.add.reduceat(clicked, starts)
    states["known_at"], states["seen_at"] = ranked.at[newest], np.maximum.reduceat(rows.time[row], starts)
    states["log_views"], states["log_clicks"] = ranked.first[newest], ranked.clicks[ranked.first[newest]]
    if side == "user":
        states["residual"] = np.add.reduceat(amount, starts)
    else:
        earlier = ranks < ranked.first[newest][key]  # known before the instant of the key's latest outcome
        views = np.add.reduceat(earlier.astype(np.int64), starts)
        states["before_views"], states["before_clicks"] = views, np.add.reduceat(clicked * earlier, starts)
        first = ranked.first[ranks[np.maximum(starts + views - 1, 0)]]
        states["before_log_views"] = np.where(views > 0, first, 0)
        states["before_log_clicks"] = np.where(views > 0, ranked.clicks[first], 0)
    length = max(definition.last, default=0)
    list_slot = length - 1 - (last[key] - np.arange(len(key)))
    kept = list_slot >= 0
    if length:
        states["last_at"][key[kept], list_slot[kept]] = at[kept]
        states["last_mark"][key[kept], list_slot[kept]] = marks[ranks[kept]]
    for number, (window, start) in enumerate(zip(definition.windows, definition.buckets.starts, strict=True)):
        bucket = at // window.width
        states["newest"][:, number] = bucket[last]
        inside = bucket > bucket[last][key] - window.buckets
        cells = key[inside], start + bucket[inside] % window.buckets
        _add(states, "bucket", cells, amount[inside])
    start = 0
    for crossed, slots in zip(
        definition.crossed(side), rows.topics if side == "user" else rows.attributes, strict=True
    ):
        slot = slots[row].astype(np.int64)
        counted = slot >= 0
        _add(states, "crossed", (key[counted], start + slot[counted]), amount[counted])
        start += crossed.slots
    return states


def _add(states: State, prefix: str, index: tuple[Ints, Ints], amount: Ints) -> None:
    """Count outcomes and add their amounts at index (key, column), which may repeat."""
    for name, values in ((f"{prefix}_views", np.ones_like(amount)), (f"{prefix}_sums", amount)):
        total: npt.NDArray[np.int64] = np.zeros(states[name].shape, np.int64)
        np.add.at(total, index, values)
        states[name] += total.astype(states[name].dtype)
