"""Sorting and counting outcomes by key, whole columns at a time.

Outcomes of a log are numbered by *rank*, their place in the order in which they are known. Key and rank go into one 64-bit number, so one
sort puts the outcomes of every key side by side in the order of their ranks.

Shapes: R rows of a log, each of which is one outcome.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from thinktwice.errors import DataError

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Whole = TypeVar("Whole", np.int32, np.int64)


def places(
    codes: npt.NDArray[np.integer], ranked: npt.NDArray[np.integer], bits: int, before: tuple[Codes, ...]
) -> tuple[Codes, Codes, tuple[Codes, ...]]:
    """Ranks of the outcomes with a key, by key and rank; and where every row stands in them.

    Args:
        codes: key of each row [R], -1 for none.
        ranked: key of the outcome of each rank [R], -1 for none.
        bits: of a rank.
        before: ranks [R], of each of which the place is asked for.

    Returns:
        The ranks; of every row the place of the first outcome of its key [R], and that after the last one below each of ``before``.
        Rows without a key have 0.
    """
    outcomes = by_code(ranked, bits)
    row = low_part(by_code(codes, bits), bits)  # rows by key, then by time: what is asked for ascends
    asked = codes[row]

    def place(rank: Codes | int) -> Codes:
        found = np.zeros(len(codes), np.int32)
        found[row] = np.searchsorted(outcomes, composites(asked, rank, bits))
        return found

    start, reach = place(0), tuple(place(ranks[row]) for ranks in before)
    return low_part(outcomes, bits), start, reach


def by_code(codes: npt.NDArray[np.integer], bits: int) -> Ints:
    """Composites of codes and their places, ascending, without codes of -1.

    Raises:
        DataError: codes and places together do not fit into 63 bits.
    """
    there = np.flatnonzero(codes >= 0)
    if len(there) and int(codes.max()).bit_length() + bits > 62:
        raise DataError(
            f"a log of {len(codes):,} rows has too many keys for its counters: use fewer slots, or a part of the log"
        )
    found = composites(codes[there], there, bits)
    found.sort()
    return found


def composites(codes: npt.NDArray[np.integer], numbers: npt.NDArray[np.integer] | int, bits: int) -> Ints:
    """Codes and numbers below ``2**bits`` as one number that sorts by code first."""
    out = codes.astype(np.int64)
    out <<= bits
    out |= numbers
    return out


def low_part(composite: Ints, bits: int) -> Codes:
    """The numbers of composites."""
    return (composite & ((1 << bits) - 1)).astype(np.int32)


def running_total(values: npt.NDArray[np.generic], ranks: Codes, kind: type[Whole]) -> npt.NDArray[Whole]:
    """Totals of the values before each place of ``ranks``: [len(ranks) + 1]."""
    out = np.zeros(len(ranks) + 1, kind)
    np.cumsum(values[ranks], out=out[1:])
    return out
