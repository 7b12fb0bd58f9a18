"""Counters outcome by outcome: one small state for each user, each item and the log, and the counters of a request's candidates.

A state is one row of integers of fixed size (a numpy structured type), so a store keeps it as bytes or as plain columns
(:mod:`thinktwice.data.instant.columns`). It depends on the set of outcomes and not on their order of arrival, except for
two numbers: a residual uses the item's rate as known when the outcome arrives, and the log's rate used as a prior is that
at the arrival of the latest outcome. Outcomes that arrive in the order of the instants at which they are known give the
same bits as :mod:`thinktwice.data.instant.log_counters`.

A caller applies an outcome only after the instant at which it is known has passed, and each outcome once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thinktwice.data.instant.definition import RECENT, RESIDUAL_BITS, Buckets, Definition, Side
from thinktwice.data.instant.keys import Ints, key_hash, ties
from thinktwice.data.instant.values import Floats, Sums, counters, log_rate, residuals, smoothed

State = np.ndarray  # structured
StateKind = Literal["user", "item", "log", "recent"]

NEVER = -(2**63)  # the instant of an empty slot
_ZERO = 1 << RESIDUAL_BITS  # a residual of 0 in a mark
_RESIDUAL_MASK = (1 << (RESIDUAL_BITS + 2)) - 1

#: Outcomes of the whole log, and those known strictly before the latest instant.
_LOG = np.dtype(
    [("views", "<i8"), ("clicks", "<i8"), ("known_at", "<i8"), ("before_views", "<i8"), ("before_clicks", "<i8")]
)
#: A user's latest outcomes, oldest first: when each was known, the item's hash, the label.
_RECENT = np.dtype([("at", "<i8", (RECENT,)), ("item", "<i8", (RECENT,)), ("clicked", "<i4", (RECENT,))])


@dataclass(frozen=True)
class Outcome:
    """An impression with its label. Ids are spelled texts, ``time`` is its instant in microseconds.

    ``topics`` and ``attributes`` are the slots of its item and user (:func:`thinktwice.data.instant.keys.slots_of`).
    """

    user: str | None
    item: str | None
    time: int
    clicked: bool
    topics: tuple[int, ...] = ()
    attributes: tuple[int, ...] = ()


def state_type(definition: Definition, kind: StateKind) -> np.dtype[Any]:
    """The structured type of a state: fixed size, no padding, little-endian.

    ``known_at`` is when the latest outcome was known, ``seen_at`` the latest impression; ``last_*`` are the latest outcomes, oldest
    first. ``newest`` is the number of each window's newest bucket. Buckets are stored window by window, bucket ``b`` at
    position ``b`` modulo the number of buckets of its window. Slots of crossed fields are stored field by field.
    """
    if kind == "log":
        return _LOG
    if kind == "recent":
        return _RECENT
    length = max(definition.last, default=0)
    sums, mark = ("<i8", "<u4") if kind == "user" else ("<i4", "<u2")
    fields: list[tuple[Any, ...]] = [
        (name, "<i8") for name in ("views", "clicks", "known_at", "seen_at", "log_views", "log_clicks")
    ]
    if kind == "user":
        fields.append(("residual", "<i8"))
    else:
        fields += [(f"before_{name}", "<i8") for name in ("views", "clicks", "log_views", "log_clicks")]
    if length:
        fields += [("last_at", "<i8", (length,)), ("last_mark", mark, (length,))]
    buckets = sum(w.buckets for w in definition.windows)
    if buckets:
        fields += [("newest", "<i8", (len(definition.windows),))]
        fields += [("bucket_views", "<i4", (buckets,)), ("bucket_sums", sums, (buckets,))]
    slots = sum(c.slots for c in definition.crossed(kind))
    if slots:
        fields += [("crossed_views", "<i4", (slots,)), ("crossed_sums", sums, (slots,))]
    return np.dtype(fields)


def empty_states(definition: Definition, kind: StateKind, number: int = 1) -> State:
    """States without outcomes, [number]."""
    states = np.zeros(number, state_type(definition, kind))
    for name in ("known_at", "seen_at", "last_at", "at"):
        if name in (states.dtype.names or ()):
            states[name] = NEVER
    return states


def apply(
    definition: Definition,
    outcome: Outcome,
    log: State,
    user: State | None,
    item: State | None,
    recent: State | None = None,
) -> None:
    """Add one outcome to the states of the log, its user and its item, in place.

    Args:
        log, user, item, recent: states of :func:`empty_states` or a store, [1] each; None for a missing id, and for states
            that the log does not have.
    """
    at, clicked = outcome.time + definition.delay(outcome.clicked), int(outcome.clicked)
    hashes = np.array([key_hash(outcome.user), key_hash(outcome.item)], np.uint64)
    tie = int(ties(hashes[:1], hashes[1:], np.array([outcome.time], np.int64))[0])
    before = _add_to_log(log[0], at, clicked)
    rate = log_rate(*before)
    if item is not None and outcome.item is not None:
        item_state = item[0]
        if at > item_state["known_at"]:
            for name in ("views", "clicks", "log_views", "log_clicks"):
                item_state[f"before_{name}"] = item_state[name]
        if item_state["before_views"]:
            towards = log_rate(item_state["before_log_clicks"], item_state["before_log_views"])
            rate = smoothed(item_state["before_clicks"], item_state["before_views"], towards)
        if at < item_state["known_at"]:  # it comes late
            item_state["before_views"] += 1
            item_state["before_clicks"] += clicked
        _add(definition, item_state, at, clicked, (tie << 1) | clicked, clicked)
        _add_crossed(definition, "item", item_state, outcome.attributes, clicked)
        _advance(item_state, outcome.time, at, before)
    if user is not None and outcome.user is not None:
        user_state = user[0]
        residual = int(residuals(np.array(outcome.clicked), rate))
        mark = (tie << (RESIDUAL_BITS + 2)) | (residual + _ZERO)
        _add(definition, user_state, at, clicked, mark, residual)
        _add_crossed(definition, "user", user_state, outcome.topics, residual)
        user_state["residual"] += residual
        _advance(user_state, outcome.time, at, before)
        if recent is not None and outcome.item is not None:
            _add_recent(recent[0], at, int(hashes[1:].view(np.int64)[0]), clicked)


def values(
    definition: Definition, user: State | None, items: State, instant: int, topics: Ints, attributes: Ints
) -> npt.NDArray[np.float32]:
    """Counters of n candidates of one user at one instant, float32 [n, C] in the order of ``definition.names``; NaN is unknown.

    Args:
        user: state [1], None for an unknown or missing user.
        items: states [n], empty ones for unknown or missing items.
        instant: of the request, in microseconds.
        topics: slots of each candidate's topics [n, T], -1 for none.
        attributes: slots of the user's attributes [A], -1 for none.
    """
    blocks = []
    if definition.user is not None:
        slots = np.asarray(topics, np.int64).reshape(len(items), len(definition.topics))
        user_state = empty_states(definition, "user") if user is None else user
        blocks.append(counters(_sums(definition, "user", user_state, instant, slots), definition.last, "user"))
    if definition.item is not None:
        slots = np.asarray(attributes, np.int64)
        blocks.append(counters(_sums(definition, "item", items, instant, slots), definition.last, "item"))
    return np.concatenate(blocks, axis=1)


def slot_values(definition: Definition, side: Side, states: State, instant: int) -> npt.NDArray[np.float32]:
    """Counters of n users or items at one instant, for every slot of their crossed fields: float32 [n, C - 2 X + 2 S] in the order of
    ``Definition.counters_of``, with S slots in place of X crossed fields. The counters of seconds are 0; NaN is unknown."""
    return counters(_sums(definition, side, states, instant, None), definition.last, side)


def _add_to_log(log: Any, at: int, clicked: int) -> tuple[Any, Any]:
    """Add an outcome; returns clicks and outcomes known before its instant."""
    if at > log["known_at"]:
        log["known_at"] = at
        log["before_views"], log["before_clicks"] = log["views"], log["clicks"]
    before = log["before_clicks"], log["before_views"]
    if at < log["known_at"]:  # it comes late
        log["before_views"] += 1
        log["before_clicks"] += clicked
    log["views"] += 1
    log["clicks"] += clicked
    return before


def _advance(state: Any, time: int, at: int, before: tuple[Any, Any]) -> None:
    if at >= state["known_at"]:
        state["log_clicks"], state["log_views"] = before
        state["known_at"] = at
    if time > state["seen_at"]:
        state["seen_at"] = time


def _add(definition: Definition, state: Any, at: int, clicked: int, mark: int, amount: int) -> None:
    first = not state["views"]
    if definition.windows:
        newest, views, sums = state["newest"], state["bucket_views"], state["bucket_sums"]
    start = 0
    for number, w in enumerate(definition.windows):
        bucket, latest = at // w.width, int(newest[number])
        if first or bucket > latest:
            for stale in range(bucket if first else max(latest + 1, bucket - w.buckets + 1), bucket + 1):
                slot = start + stale % w.buckets
                views[slot] = sums[slot] = 0
            newest[number] = latest = bucket
        if bucket > latest - w.buckets:
            slot = start + bucket % w.buckets
            views[slot] += 1
            sums[slot] += amount
        start += w.buckets
    if definition.last:
        _insert((state["last_at"], state["last_mark"]), (at, mark))
    state["views"] += 1
    state["clicks"] += clicked


def _add_crossed(definition: Definition, side: Side, state: Any, slots: tuple[int, ...], amount: int) -> None:
    start = 0
    for crossed, slot in zip(definition.crossed(side), slots, strict=True):
        if slot >= 0:
            state["crossed_views"][start + slot] += 1
            state["crossed_sums"][start + slot] += amount
        start += crossed.slots


def _add_recent(recent: Any, at: int, item: int, clicked: int) -> None:
    _insert((recent["at"], recent["item"], recent["clicked"]), (at, item, clicked))


def _insert(columns: tuple[np.ndarray, ...], entry: tuple[int, ...]) -> None:
    """Insert an entry into ascending columns of fixed length; the lowest entry, which may be the new one, is dropped."""
    position = len(columns[0])
    while position and tuple(int(c[position - 1]) for c in columns) > entry:
        position -= 1
    if not position:
        return
    for column, value in zip(columns, entry, strict=True):
        column[: position - 1] = column[1:position]
        column[position - 1] = value


def _sums(definition: Definition, side: Side, states: State, instant: int, slots: Ints | None) -> Sums:
    """The sums of one user for n rows with topics of these slots [n, T], or of n items for a user with attributes of these
    slots [A]; None: of n users or items for every slot, without the time since their outcomes."""
    window_views, window_sums = _windows(definition, states, instant)
    totals = [states["residual"][:, None]] if side == "user" else []
    totals += [_last(definition, side, states), window_sums]
    crossed_views = crossed_sums = np.zeros(
        (len(slots) if slots is not None and side == "user" else len(states), 0), np.int64
    )
    if definition.crossed(side):
        crossed_views, crossed_sums = states["crossed_views"], states["crossed_sums"]
        if slots is not None:
            position = definition.slot_starts[side] + np.maximum(slots, 0)
            crossed_views, crossed_sums = (
                (values[0][position] if side == "user" else values[:, position])
                for values in (crossed_views, crossed_sums)
            )
            crossed_views = np.where(slots < 0, -1, crossed_views)
    since = None
    if slots is not None:  # wraps around for an unknown key
        since = instant - np.stack([states["seen_at"], states["known_at"]], axis=1)
    return Sums(
        views=states["views"],
        clicks=states["clicks"],
        log_views=states["log_views"],
        log_clicks=states["log_clicks"],
        since=since,
        window_views=window_views,
        sums=np.concatenate(totals, axis=1),
        crossed_views=crossed_views,
        crossed_sums=crossed_sums,
    )


def _windows(definition: Definition, states: State, instant: int) -> tuple[Ints, Floats]:
    """Outcomes, and sums of residuals or clicks, in each window at an instant: [n, W] twice."""
    if not definition.windows:
        return np.zeros((len(states), 0), np.int64), np.zeros((len(states), 0))
    buckets = definition.buckets
    newest = states["newest"]
    if len(states) == 1:
        (one,) = newest.tolist()
        inside = _inside_of_one(
            buckets,
            tuple(
                [
                    min(max(instant // w.width - n, -w.buckets), w.buckets)
                    for w, n in zip(definition.windows, one, strict=True)
                ]
            ),
            tuple([n % w.buckets for w, n in zip(definition.windows, one, strict=True)]),
        )
    else:
        behind = instant // buckets.width - newest  # number of buckets from the newest one to that of the instant
        inside = _inside(buckets, np.minimum(np.maximum(behind, -buckets.number), buckets.number), newest)
    # Sums of buckets as products with a matrix of ones: whole numbers below 2**53 are exact.
    views, sums = ((states[name] * inside).astype(np.float64) for name in ("bucket_views", "bucket_sums"))
    return (views @ buckets.blocks).astype(np.int64), sums @ buckets.blocks


def _inside(buckets: Buckets, behind: Ints, newest: Ints) -> npt.NDArray[np.bool_]:
    """Which buckets [n, B] are in their window: of states with these newest buckets [n, W], that many ``behind`` [n, W] the instant."""
    behind = behind.astype(np.int16)
    back = (newest % buckets.number).astype(np.int16)[:, buckets.window] - buckets.place
    back += (back < 0) * buckets.wrap  # number of buckets from each one to the newest one
    inside: npt.NDArray[np.bool_] = back < (buckets.number - behind)[:, buckets.window]
    if behind.min(initial=0) < 0:  # the instant is before the newest outcome
        inside &= back >= -behind[:, buckets.window]
    return inside


@lru_cache(maxsize=1 << 13)
def _inside_of_one(buckets: Buckets, behind: tuple[int, ...], newest: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Like :func:`_inside` of one state, whose newest buckets are given modulo their number: the same for many users of an hour."""
    inside = _inside(buckets, np.array([behind]), np.array([newest]))
    inside.flags.writeable = False
    return inside


def _last(definition: Definition, side: Side, states: State) -> Floats:
    """Sums of the latest k residuals or clicks, [n, K]."""
    if not definition.last:
        return np.zeros((len(states), 0))
    if side == "item":
        amount = (states["last_mark"] & np.uint16(1)).astype(np.float64)  # an empty slot has the mark 0
    else:
        mark = states["last_mark"].astype(np.int64)
        amount = np.where(states["last_at"] == NEVER, 0, (mark & _RESIDUAL_MASK) - _ZERO).astype(np.float64)
    return amount @ definition.latest
