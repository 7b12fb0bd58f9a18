"""Retrieved evidence: the user's outcomes on items similar to the candidate, turned into a change of the first logit.

The user's outcomes are scattered over the catalogue once per request; every candidate then gathers the outcomes of its
neighbours.
Shapes: I items (0 is the unknown one), N neighbours, n rows, K outcomes.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file

from thinktwice.data.evidence import History
from thinktwice.errors import BundleError, DataError
from thinktwice.files import atomic_file
from thinktwice.mapped import map_tensors
from thinktwice.models.logit_network import Floats, Network, padded_rows
from thinktwice.testtime.evidence.arrays import read_network, write_network
from thinktwice.testtime.evidence.correction import CounterInputs, Logits, Standard, counter_inputs

RETRIEVAL_FILE = "retrieval.safetensors"
NEIGHBOURS_FILE = "neighbours.safetensors"
LATEST = 20  # outcomes that are also summed separately
MAX_OUTCOMES = 200  # per user, the latest
NUM_FEATURES = 8
FEW = 4  # rows of a user; with fewer on average, rows are computed together instead of user by user
ROWS_AT_ONCE, SLOTS_AT_ONCE = 256, 1 << 22  # of such rows, and of slots of items for all of them
SLOTS = np.arange(1, MAX_OUTCOMES + 1, dtype=np.uint8)
LOG_OF_NUMBER = np.array([math.log1p(number) for number in range(MAX_OUTCOMES + 1)], np.float32)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Similar items of each item. ids [I, N] int32 neighbours, 0 for padding; weights [I, N] float16 similarities, 0 at
    padding; rates [I] float32 click rates, subtracted from an outcome. Read-only maps of a file in a bundle."""

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float16]
    rates: Floats

    def features(self, items: npt.NDArray[np.int64], history: History) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Retrieved features [n, 8] of rows with these candidates [n], and the rows [n] whose user has an outcome.

        Raises:
            DataError: the history does not fit the rows, or names an item that the model does not know.
        """
        _check_history(history, len(items), len(self.rates))
        if len(items) and _is_shared(history):
            seen, clicked = _latest(history, int(history.start[0]), int(history.end[0]))
            if len(seen) == 0:
                return np.zeros((len(items), NUM_FEATURES), np.float32), np.zeros(len(items), bool)
            return self._of_user(items, seen, clicked), np.ones(len(items), bool)
        out, has_outcome = np.zeros((len(items), NUM_FEATURES), np.float32), np.zeros(len(items), bool)
        users, at_once = _users(history), min(ROWS_AT_ONCE, SLOTS_AT_ONCE // max(len(self.rates), 1))
        if at_once >= FEW and len(items) < FEW * len(users):  # most rows have outcomes of their own
            for first in range(0, len(items), at_once):
                part = slice(first, first + at_once)
                out[part], has_outcome[part] = self._of_rows(items[part], history.take(part))
            return out, has_outcome
        for rows, start, end in users:
            seen, clicked = _latest(history, start, end)
            if len(seen):
                out[rows] = self._of_user(items[rows], seen, clicked)
                has_outcome[rows] = True
        return out, has_outcome

    def _of_user(
        self, items: npt.NDArray[np.int64], seen: npt.NDArray[np.int32], clicked: npt.NDArray[np.bool_]
    ) -> Floats:
        slots, size, (number, width) = self._slots, len(seen) + 1, (len(items), self.ids.shape[1])
        try:
            slots[seen] = SLOTS[: len(seen)]  # the last outcome of an item gives it its slot
            slot, near, candidate = slots.take(seen), slots.take(self.ids.take(items, axis=0)), slots.take(items)
        finally:
            slots[seen] = 0
        residual = clicked - self.rates.take(seen)
        of_slot: npt.NDArray[np.float32] = np.empty((2, size, 3), np.float32)  # for positive and negative weights
        positive, negative = of_slot[0], of_slot[1]
        positive[:, 0] = np.bincount(slot, residual, size)
        positive[:, 1] = np.bincount(slot[-LATEST:], residual[-LATEST:], size)
        positive[:, 2] = np.bincount(slot, minlength=size)
        np.negative(positive, out=negative)
        negative[:, 2] = positive[:, 2]
        # Few neighbours have an outcome. Sums run over the neighbours in their order, so a row has the same bits in any request.
        near = near.reshape(-1)
        (place,) = (near != 0).nonzero()
        starts = place.searchsorted(np.arange(0, (number + 1) * width, width))
        weight = self.weights.take(items, axis=0).reshape(-1).take(place).astype(np.float32)
        index = near.take(place) + (weight < 0) * np.int32(size)
        sums = _sums(of_slot.reshape(-1, 3), index, starts[:-1], np.abs(weight))
        own = positive.take(candidate, axis=0)
        out = np.empty((number, NUM_FEATURES), np.float32)
        out[:, 0], out[:, 1] = sums[:, 0], sums[:, 0] / (sums[:, 2] + np.float32(0.5))
        out[:, 2], out[:, 3], out[:, 4] = sums[:, 2], sums[:, 1], np.log1p(starts[1:] - starts[:-1])
        out[:, 5], out[:, 6], out[:, 7] = own[:, 0], np.log1p(own[:, 2]), math.log1p(len(seen))
        return out

    def _of_rows(self, items: npt.NDArray[np.int64], history: History) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Like :meth:`features`, to the bit, of rows that have outcomes of their own."""
        number, width, size = len(items), self.ids.shape[1], MAX_OUTCOMES + 1
        each = np.arange(number)
        seen, clicked, row, place_in_row, counts = _latest_of_rows(history)
        slots = np.zeros((number, len(self.rates)), np.uint8)
        slots[row, seen] = place_in_row + 1  # the last outcome of an item gives it its slot
        near = slots.reshape(-1).take(self.ids.take(items, axis=0) + (each * len(self.rates))[:, None])
        bins, residual = row * size + slots[row, seen], clicked - self.rates.take(seen)
        latest = place_in_row >= counts[row] - LATEST
        of_slot: npt.NDArray[np.float32] = np.empty((number, 2, size, 3), np.float32)
        for column, values in enumerate(
            (
                np.bincount(bins, residual, number * size),
                np.bincount(bins[latest], residual[latest], number * size),
                np.bincount(bins, minlength=number * size),
            )
        ):
            of_slot[..., column] = values.reshape(number, 1, size)
        of_slot[:, 1, :, :2] *= -1
        place = np.flatnonzero(near.astype(bool))
        starts = place.searchsorted(np.arange(0, (number + 1) * width, width))
        weight = self.weights.take(items, axis=0).reshape(-1).take(place).astype(np.float32)
        index = near.reshape(-1).take(place) + (weight < 0) * size + place // width * (2 * size)
        sums = _sums(of_slot.reshape(-1, 3), index.astype(np.int32), starts[:-1], np.abs(weight))
        own = of_slot[each, 0, slots[each, items]]
        out = np.empty((number, NUM_FEATURES), np.float32)
        out[:, 0], out[:, 1] = sums[:, 0], sums[:, 0] / (sums[:, 2] + np.float32(0.5))
        out[:, 2], out[:, 3], out[:, 4] = sums[:, 2], sums[:, 1], np.log1p(starts[1:] - starts[:-1])
        out[:, 5], out[:, 6], out[:, 7] = own[:, 0], np.log1p(own[:, 2]), LOG_OF_NUMBER.take(counts)
        out[counts == 0] = 0
        return out, counts > 0

    @property
    def _slots(self) -> npt.NDArray[np.uint8]:
        """[I] zeros: the slot of an item among a user's outcomes. Kept by each thread, because making it takes longer than using
        it for a large catalogue."""
        slots: npt.NDArray[np.uint8] | None = getattr(self._of_thread, "slots", None)
        if slots is None:
            slots = self._of_thread.slots = np.zeros(len(self.rates), np.uint8)
        return slots

    @cached_property
    def _of_thread(self) -> threading.local:
        return threading.local()

    def save(self, folder: Path | str) -> None:
        """Write ``neighbours.safetensors`` into ``folder``."""
        with atomic_file(Path(folder) / NEIGHBOURS_FILE) as temporary:
            save_file({"ids": self.ids, "weights": self.weights, "rates": self.rates}, str(temporary))

    @staticmethod
    def load(folder: Path | str) -> Neighbours:
        """Map what :meth:`save` wrote.

        Raises:
            BundleError: the file is missing or damaged.
        """
        path = Path(folder) / NEIGHBOURS_FILE
        tensors = map_tensors(path, {"ids": np.int32, "weights": np.float16, "rates": np.float32})
        ids, weights, rates = (np.asarray(tensors[name]) for name in ("ids", "weights", "rates"))
        problem = ""
        if ids.ndim != 2 or weights.shape != ids.shape or rates.shape != ids.shape[:1]:
            problem = (
                f"'ids' {list(ids.shape)}, 'weights' {list(weights.shape)} and 'rates' {list(rates.shape)} disagree"
            )
        elif ids.size and (int(ids.min()) < 0 or int(ids.max()) >= len(ids)):
            problem = f"'ids' names an item outside the {len(ids)} there are"
        elif not (np.isfinite(weights).all() and ((rates >= 0) & (rates <= 1)).all()):
            problem = "'weights' or 'rates' contains numbers that are not finite, or no rates"
        if problem:
            raise BundleError(f"{path} is damaged ({problem}): fit the test-time parameters again")
        return Neighbours(ids, weights, rates)


def retrieval_inputs(
    counters_standard: Standard, standard: Standard, first: Logits, counters: Floats, features: Floats
) -> Floats:
    """Inputs [n, 1 + 2 C + 8] of rows: :func:`counter_inputs` of the first logits [n], and standardised ``features`` [n, 8]."""
    return np.concatenate([counter_inputs(counters_standard, first, counters), standard(features)], axis=1)


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Neighbours, and the network over :func:`retrieval_inputs` standardised by ``standard``."""

    neighbours: Neighbours
    standard: Standard
    network: Network

    def changes(self, first: Logits, inputs: CounterInputs, rows: npt.NDArray[np.int64], features: Floats) -> Floats:
        """Changes [U] float32 of the first logits [U] of some ``rows`` [U] of the ``inputs``, with retrieved features [U, 8]. A row
        has the same bits in any request."""
        number, start = len(rows), 1 + NUM_FEATURES
        block = np.empty((padded_rows(number), start + inputs.first.shape[1]), np.float32)
        self.standard.write(first, features, block)
        block[:number, start:] = inputs.first.take(rows, axis=0)
        return self._reordered.changes(block, *inputs.indicators(rows))[:number]

    @cached_property
    def _reordered(self) -> Network:
        """The network with inputs in the order of :meth:`changes`: logit, features, base logit (which it ignores), counters, and
        indicators of unknown counters."""
        weights, *others = self.network.arrays
        counters = (self.network.width - 1 - NUM_FEATURES) // 2
        logit, known, indicators, features = np.split(weights, [1, 1 + counters, 1 + 2 * counters])
        return Network((np.concatenate([logit, features, np.zeros_like(logit), known, indicators]), *others))

    def save(self, folder: Path | str) -> None:
        """Write ``retrieval.safetensors`` and ``neighbours.safetensors`` into ``folder``."""
        write_network(Path(folder) / RETRIEVAL_FILE, self.network, self.standard.means, self.standard.sds)
        self.neighbours.save(folder)

    @staticmethod
    def load(folder: Path | str) -> Retrieval:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: a file is missing or damaged.
        """
        path = Path(folder) / RETRIEVAL_FILE
        network, means, sds = read_network(path)
        if len(means) != NUM_FEATURES:
            raise BundleError(
                f"{path} is damaged ({len(means)} retrieved features instead of {NUM_FEATURES}): fit the test-time parameters again"
            )
        return Retrieval(Neighbours.load(folder), Standard(means, sds), network)


def _sums(table: Floats, index: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], weights: Floats) -> Floats:
    """Weighted sums [n, W] of the rows of ``table`` [S, W] at the ``index`` of each of n ranges, which begin at ``starts``; the bare
    operation, without the checks of its wrapper."""
    arrays = (table, index, starts.astype(np.int32), weights)
    values, at, first, weight = (torch.from_numpy(array) for array in arrays)
    return np.asarray(torch.embedding_bag(values, at, first, False, 0, False, weight)[0].numpy())


def _latest(history: History, start: int, end: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Items and labels of the latest outcomes of a range, without those of unknown items."""
    latest = slice(max(start, end - MAX_OUTCOMES), end)
    items, clicked = history.items[latest], history.clicked[latest]
    if np.count_nonzero(items) == len(items):
        return items, clicked
    return items[items > 0], clicked[items > 0]


def _latest_of_rows(history: History) -> tuple[npt.NDArray[Any], ...]:
    """What :func:`_latest` gives for every row, one row after the other: items and labels [K], the row of each and its place among
    those of the row [K], and their number by row [n]."""
    end = history.end.astype(np.int64)
    length = np.minimum(end - history.start, MAX_OUTCOMES)
    row = np.repeat(np.arange(len(end)), length)
    at = np.arange(len(row)) + np.repeat(end - np.cumsum(length), length)
    items = history.items.take(at)
    known = items > 0
    items, at, row = items[known], at[known], row[known]
    counts = np.bincount(row, minlength=len(end))
    return (
        items,
        history.clicked.take(at),
        row,
        np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts),
        counts,
    )


def _users(history: History) -> list[tuple[npt.NDArray[np.int64], int, int]]:
    """Rows that share a range of outcomes, and the start and end of that range."""
    start, end = history.start, history.end
    if len(start) == 0:
        return []
    order = np.lexsort((end, start))
    fresh = np.flatnonzero((np.diff(start[order]) != 0) | (np.diff(end[order]) != 0)) + 1
    return [(rows, int(start[rows[0]]), int(end[rows[0]])) for rows in np.split(order, fresh)]


def _is_shared(history: History) -> bool:
    """Whether all rows see the same outcomes."""
    return history.of_one_user or bool(
        (history.start == history.start[0]).all() and (history.end == history.end[0]).all()
    )


def _check_history(history: History, rows: int, items: int) -> None:
    outcomes = len(history.items)
    if len(history.clicked) != outcomes:
        raise DataError(
            f"a history has {outcomes} outcomes and {len(history.clicked)} labels: pass one label per outcome"
        )
    if not _ranges_fit(history, rows, outcomes):
        raise DataError(f"a history names outcomes outside the {outcomes} there are: correct its ranges")
    most = history.items.view(np.uint32).max(initial=0)  # a negative number is a large one
    if most >= items:
        raise DataError(
            f"a history names the item {int(history.items.max())} and the model has {items}: encode it with the bundle's encoder"
        )


def _ranges_fit(history: History, rows: int, outcomes: int) -> bool:
    if rows == 0:
        return True
    start, end = history.start, history.end
    if history.of_one_user:
        return 0 <= int(start[0]) <= int(end[0]) <= outcomes
    return bool(start.min() >= 0 and (start <= end).all() and end.max() <= outcomes)
