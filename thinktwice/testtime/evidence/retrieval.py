"""Retrieved evidence: the user's outcomes on items similar to the candidate, turned into a change of the first logit.

The user's outcomes are scattered over the catalogue once per request; every candidate then gathers the outcomes of its
neighbours.
Shapes: I items (0 is the unknown one), N neighbours, n rows, K outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from thinktwice.data.evidence import History
from thinktwice.errors import BundleError, DataError
from thinktwice.files import atomic_file
from thinktwice.mapped import map_tensors
from thinktwice.models.logit_network import Floats, Network
from thinktwice.testtime.evidence.arrays import read_network, write_network
from thinktwice.testtime.evidence.correction import Standard, counter_inputs

RETRIEVAL_FILE = "retrieval.safetensors"
NEIGHBOURS_FILE = "neighbours.safetensors"
LATEST = 20  # outcomes that are also summed separately
MAX_OUTCOMES = 200  # per user, the latest
NUM_FEATURES = 8


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
        out = np.zeros((len(items), NUM_FEATURES), np.float32)
        has_outcome = np.zeros(len(items), bool)
        slots = np.zeros(len(self.rates), np.int16)  # slot of an item among the current user's outcomes; 0: none
        for rows, start, end in _users(history):
            start = max(start, end - MAX_OUTCOMES)
            known = history.items[start:end] > 0
            if not known.any():
                continue
            seen_items, clicked = history.items[start:end][known], history.clicked[start:end][known]
            distinct = np.unique(seen_items)
            slots[distinct] = np.arange(1, len(distinct) + 1)
            out[rows] = self._of_user(items[rows], slots, seen_items, clicked)
            slots[distinct] = 0
            has_outcome[rows] = True
        return out, has_outcome

    def _of_user(
        self,
        items: npt.NDArray[np.int64],
        slots: npt.NDArray[np.int16],
        seen: npt.NDArray[np.int32],
        clicked: npt.NDArray[np.bool_],
    ) -> Floats:
        slot = slots[seen]
        residual = clicked - self.rates[seen]
        size = int(slot.max()) + 1
        total = np.bincount(slot, residual, size).astype(np.float32)
        number = np.bincount(slot, minlength=size).astype(np.float32)
        latest = np.bincount(slot[-LATEST:], residual[-LATEST:], size).astype(np.float32)
        near = slots[self.ids[items]]
        weight = self.weights[items].astype(np.float32)
        agreement, support = (weight * total[near]).sum(axis=1), (np.abs(weight) * number[near]).sum(axis=1)
        candidate = slots[items]
        columns = (
            agreement,
            agreement / (support + np.float32(0.5)),
            support,
            (weight * latest[near]).sum(axis=1),
            np.log1p((near > 0).sum(axis=1)),
            total[candidate],
            np.log1p(number[candidate]),
            np.full(len(items), np.log1p(len(seen))),
        )
        return np.stack(columns, axis=1).astype(np.float32)

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
    counters_standard: Standard,
    standard: Standard,
    first: npt.NDArray[np.float64],
    counters: Floats,
    features: Floats,
) -> Floats:
    """Inputs [n, 1 + 2 C + 8] of rows: :func:`counter_inputs` of the first logits [n], and standardised ``features`` [n, 8]."""
    return np.concatenate([counter_inputs(counters_standard, first, counters), standard(features)], axis=1)


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Neighbours, and the network over :func:`retrieval_inputs` standardised by ``standard``."""

    neighbours: Neighbours
    standard: Standard
    network: Network

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


def _users(history: History) -> list[tuple[slice | npt.NDArray[np.int64], int, int]]:
    """Rows that share a range of outcomes, and the start and end of that range."""
    start, end = history.start, history.end
    if len(start) == 0:
        return []
    if (start == start[0]).all() and (end == end[0]).all():
        return [(slice(None), int(start[0]), int(end[0]))]
    order = np.lexsort((end, start))
    fresh = np.flatnonzero((np.diff(start[order]) != 0) | (np.diff(end[order]) != 0)) + 1
    return [(rows, int(start[rows[0]]), int(end[rows[0]])) for rows in np.split(order, fresh)]


def _check_history(history: History, rows: int, items: int) -> None:
    outcomes = len(history.items)
    if len(history.clicked) != outcomes:
        raise DataError(
            f"a history has {outcomes} outcomes and {len(history.clicked)} labels: pass one label per outcome"
        )
    if rows and not (
        history.start.min() >= 0 and (history.start <= history.end).all() and history.end.max() <= outcomes
    ):
        raise DataError(f"a history names outcomes outside the {outcomes} there are: correct its ranges")
    if outcomes and not (history.items.min() >= 0 and history.items.max() < items):
        raise DataError(
            f"a history names the item {int(history.items.max())} and the model has {items}: encode it with the bundle's encoder"
        )
