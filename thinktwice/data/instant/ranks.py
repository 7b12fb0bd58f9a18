"""Sorting and counting outcomes by key, whole columns at a time.

Outcomes of a log are numbered by *rank*, their position in the order in which they are known. Key and rank are packed into
one 64-bit number, so one sort makes the outcomes of every key contiguous and ordered by rank.

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


def key_positions(
    codes: npt.NDArray[np.integer], ranked: npt.NDArray[np.integer], bits: int, before: tuple[Codes, ...]
) -> tuple[Codes, Codes, tuple[Codes, ...]]:
    """Ranks of the outcomes with a key, sorted by key and rank, and the positions of every row in them.

    Args:
        codes: key of each row [R], -1 for none.
        ranked: key of the outcome of each rank [R], -1 for none.
        bits: number of bits of a rank.
        before: arrays of ranks [R]; one array of positions is returned for each.

    Returns:
        The ranks; for every row the position of the first outcome of its key [R], and, for each of ``before``, the position
        after the last outcome with a lower rank. Rows without a key have 0.
    """
    outcomes = by_code(ranked, bits)
    row = low_part(by_code(codes, bits), bits)  # rows by key, then by time, so the searched values ascend
    row_codes = codes[row]

    def position(rank: Codes | int) -> Codes:
        out = np.zeros(len(codes), np.int32)
        out[row] = np.searchsorted(outcomes, composites(row_codes, rank, bits))
        return out

    start, reach = position(0), tuple(position(ranks[row]) for ranks in before)
    return low_part(outcomes, bits), start, reach


def by_code(codes: npt.NDArray[np.integer], bits: int) -> Ints:
    """Composites of codes and their positions, ascending, without codes of -1.

    Raises:
        DataError: codes and positions together do not fit into 63 bits.
    """
    rows = np.flatnonzero(codes >= 0)
    if len(rows) and int(codes.max()).bit_length() + bits > 62:
        raise DataError(
            f"a log of {len(codes):,} rows has too many keys for its counters: use fewer slots, or a part of the log"
        )
    keys = composites(codes[rows], rows, bits)
    keys.sort()
    return keys


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
    """Totals of the values before each position of ``ranks``: [len(ranks) + 1]."""
    out = np.zeros(len(ranks) + 1, kind)
    np.cumsum(values[ranks], out=out[1:])
    return out
