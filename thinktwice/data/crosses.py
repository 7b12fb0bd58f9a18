"""Crosses: pairs of the values of two categorical fields, as categories of their own.

A cross is computed from the indices of its two fields and from nothing else, so training, a server and a table of rows to score cannot
compute it differently. Its vocabulary has the pairs of training as JSON texts, ``["de","mobile"]``, null for a missing value; a pair that
is not among them, or has an unknown value, is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from thinktwice.data.vocabulary import NULL

Ids = npt.NDArray[np.int32] | npt.NDArray[np.int64]


def pair_text(first: str, second: str) -> str:
    """The pair of two values of vocabularies as a value of a vocabulary."""
    return json.dumps([None if v == NULL else v for v in (first, second)], ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class CrossIndex:
    """The indices of the pairs of one cross.

    Attributes:
        column: of the cross in the ids of a row.
        parents: the columns of its two fields.
        keys: [V] pairs of the vocabulary as ``first * size + second``, ascending, with their indices ``values`` [V].
        size: number of indices of the second field.
    """

    column: int
    parents: tuple[int, int]
    keys: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    size: int

    @staticmethod
    def of(
        column: int, parents: tuple[int, int], words: Sequence[str], first: Mapping[str, int], second: Mapping[str, int]
    ) -> CrossIndex:
        """The index of a vocabulary ``words``, whose pairs are values of the two fields, given as value -> index.

        Raises:
            ValueError: a word is not a pair of such values.
        """
        keys = np.empty(len(words), np.int64)
        size = len(second) + 1
        for position, word in enumerate(words):
            pair = _pair(word)
            if pair is None or pair[0] not in first or pair[1] not in second:
                raise ValueError(f"{word!r} is not a pair of values of the two fields")
            keys[position] = first[pair[0]] * size + second[pair[1]]
        order = np.argsort(keys, kind="stable")
        return CrossIndex(column, parents, keys[order], order.astype(np.int64) + 1, size)

    def index(self, first: Ids, second: Ids) -> npt.NDArray[np.int64]:
        """Indices [R] of the pairs of the indices [R] of the two fields, 0 for unknown."""
        if len(self.keys) == 0:
            return np.zeros(len(first), np.int64)
        wanted = first.astype(np.int64) * self.size + second
        position = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        known = (self.keys[position] == wanted) & (first > 0) & (second > 0)
        return np.where(known, self.values[position], 0)

    def fill(self, ids: Ids) -> None:
        """Set the column of the cross in ids [R, C] of whole rows."""
        ids[:, self.column] = self.index(ids[:, self.parents[0]], ids[:, self.parents[1]])


def pair_counts(first: Ids, second: Ids, words: tuple[Sequence[str], Sequence[str]]) -> pl.DataFrame:
    """The pairs (``value``) of the indices [R] of two fields and how often each occurs (``len``), most frequent first. Pairs with an
    unknown value are left out. ``words``: the values of the fields; index i is word i - 1."""
    pairs = pl.DataFrame({"a": first, "b": second}).filter((pl.col("a") > 0) & (pl.col("b") > 0))
    counts = pairs.group_by("a", "b").len()
    texts = [pair_text(words[0][a - 1], words[1][b - 1]) for a, b in counts.select("a", "b").iter_rows()]
    named = counts.select(pl.Series("value", texts, dtype=pl.String), "len")
    return named.sort(["len", "value"], descending=[True, False])


def _pair(word: str) -> tuple[str, str] | None:
    try:
        pair = json.loads(word)
    except ValueError:
        return None
    if not isinstance(pair, list) or len(pair) != 2 or not all(v is None or isinstance(v, str) for v in pair):
        return None
    first, second = (NULL if v is None else v for v in pair)
    return first, second
