"""Item-to-item similarity: shrunk cosines of click residuals over the rows of a part of train.

A residual is a click minus the click rate of its item, so items are not similar just because they are popular.
Memory: one block of items against the catalogue at a time; only the latest :data:`ROWS_PER_USER` rows of a user are used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

NEIGHBOURS = 200
ROWS_PER_USER = 200  # the latest; the cost grows with its square
RATE_PRIOR = 20.0  # pseudo-outcomes at the overall rate that smooth the rate of an item
SHRINKAGE = 10.0  # number of common users at which shrinkage halves a similarity
ITEMS_AT_ONCE = 512

Floats = npt.NDArray[np.float32]


def item_rates(items: npt.NDArray[np.int32], clicked: npt.NDArray[np.bool_], num_items: int) -> Floats:
    """Smoothed click rate of every item [I]; the overall rate for an item without rows."""
    views, clicks = np.bincount(items, minlength=num_items), np.bincount(items[clicked], minlength=num_items)
    overall = float(clicked.mean()) if len(clicked) else 0.0
    return ((clicks + RATE_PRIOR * overall) / (views + RATE_PRIOR)).astype(np.float32)


def fit_neighbours(
    users: npt.NDArray[np.int64],
    items: npt.NDArray[np.int32],
    clicked: npt.NDArray[np.bool_],
    num_items: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16], Floats]:
    """Ids [I, 200] of the most similar items (0 for padding), their similarities [I, 200] and the rates [I] of all items.

    Similarities may be negative; they are sorted by magnitude, descending, then by item id.

    Args:
        users: [R] of the rows in time order, -1 for none; such rows are ignored.
        items: [R] 0 for unknown; such rows are ignored.
        clicked: [R].
        num_items: I, the unknown one included.
    """
    rates = item_rates(items, clicked, num_items)
    ids, weights = np.zeros((num_items, NEIGHBOURS), np.int32), np.zeros((num_items, NEIGHBOURS), np.float16)
    rows = np.flatnonzero((users >= 0) & (items > 0))
    rows = rows[_latest(users[rows])]
    codes = np.unique(users[rows], return_inverse=True)[1]
    index = (codes, items[rows])
    shape = (int(codes.max(initial=-1)) + 1, num_items)
    residual = (clicked[rows] - rates[items[rows]]).astype(np.float64)
    by_user = sparse.csr_matrix((residual, index), shape)
    occurs = sparse.csr_matrix((np.ones(len(rows)), index), shape)
    by_user.sum_duplicates()
    occurs.sum_duplicates()
    occurs.data[:] = 1.0
    norms = np.sqrt(np.asarray(by_user.multiply(by_user).sum(axis=0)).ravel())
    by_item, occurs_by_item = by_user.T.tocsr(), occurs.T.tocsr()
    for start in range(0, num_items, ITEMS_AT_ONCE):
        end = min(start + ITEMS_AT_ONCE, num_items)
        products, common = by_item[start:end] @ by_user, occurs_by_item[start:end] @ occurs
        for part in (products, common):
            part.sort_indices()
        for row in range(end - start):
            where = slice(common.indptr[row], common.indptr[row + 1])
            similar, together = common.indices[where], common.data[where]
            entries = slice(products.indptr[row], products.indptr[row + 1])
            product = np.zeros(len(similar))
            product[np.searchsorted(similar, products.indices[entries])] = products.data[entries]
            size = norms[start + row] * norms[similar]
            weight = product / np.where(size > 0, size, 1.0) * (together / (together + SHRINKAGE))
            weight = weight.astype(np.float16)
            keep = np.flatnonzero((weight != 0) & (similar != start + row))
            best = keep[np.lexsort((similar[keep], -np.abs(weight[keep].astype(np.float32))))][:NEIGHBOURS]
            ids[start + row, : len(best)], weights[start + row, : len(best)] = similar[best], weight[best]
    return ids, weights, rates


def _latest(users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions of the latest rows of every user, ascending."""
    order = np.argsort(users, kind="stable")
    ends = np.r_[np.flatnonzero(np.diff(users[order])) + 1, len(users)] if len(users) else np.zeros(0, np.int64)
    from_end = np.repeat(ends, np.diff(np.r_[0, ends])) - np.arange(len(users))
    return np.sort(order[from_end <= ROWS_PER_USER])
