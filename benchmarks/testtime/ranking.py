"""Quality of the top of each list, if only a few positions can be filled.

Shapes: R rows, G lists; ``target`` [R] is the gain of a row (click, or its true probability), ``group`` [R] codes 0..G-1.
"""

from __future__ import annotations

import numpy as np


def ndcg_at(k: int, target: np.ndarray, score: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Normalised discounted gain of the top ``k`` rows by score of every list, [G]; nan where all gains are 0.

    Equal scores keep the order of the rows.
    """
    gain = _discounted(k, target, score, group)
    best = _discounted(k, target, target, group)
    return np.divide(gain, best, out=np.full(len(best), np.nan), where=best > 0)


def top_k_regret(k: int, target: np.ndarray, score: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Gain of the best ``k`` rows of every list minus gain of the top ``k`` by score, [G], never negative."""
    rank_worth, rank_score = _ranks(target, group), _ranks(score, group)
    lists = int(group.max(initial=-1)) + 1
    best = np.bincount(group, weights=np.where(rank_worth < k, target, 0.0), minlength=lists)
    return best - np.bincount(group, weights=np.where(rank_score < k, target, 0.0), minlength=lists)


def _discounted(k: int, target: np.ndarray, by: np.ndarray, group: np.ndarray) -> np.ndarray:
    rank = _ranks(by, group)
    worth = np.where(rank < k, target / np.log2(rank + 2.0), 0.0)
    return np.bincount(group, weights=worth, minlength=int(group.max(initial=-1)) + 1)


def _ranks(value: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Rank [R] of every row in its list, largest value first, from 0."""
    order = np.lexsort((-value, group))
    ordered = group[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, bool)
    start = np.maximum.accumulate(np.where(first, np.arange(len(ordered)), 0))
    rank = np.empty(len(value), np.int64)
    rank[order] = np.arange(len(ordered)) - start
    return rank
