"""XXH64 of whole columns: of texts, for the assignment to arms, and of integers, for row ids and random splits.

The algorithm is Yann Collet's public specification, written in numpy because a call into a hash library for each of ten
million rows costs more than the rest of an ingest. Tests compare it with the library ``xxhash``.
Row ids, splits and assignments of existing logs depend on these hashes: never change them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(p)
    for p in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)


def xxh64_of_integers(values: np.ndarray, seed: int) -> np.ndarray:
    """XXH64 of each value's 8 little-endian bytes: uint64 [R] -> uint64 [R]. For one seed no two values share a hash."""
    with np.errstate(over="ignore"):
        start = np.uint64(seed) + _P5 + np.uint64(8)
        return _avalanche(_absorb(start, np.asarray(values).astype(np.uint64)))


def xxh64_of_texts(text: pa.Array | pa.ChunkedArray, prefix: str = "") -> np.ndarray:
    """XXH64 with seed 0 of ``prefix`` + text [R] in UTF-8: uint64 [R]; a null is hashed as an empty text."""
    column = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    column = pc.fill_null(column.cast(pa.large_string()), "")
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    head = np.frombuffer(prefix.encode(), np.uint8)
    sizes = np.diff(offsets)
    out = np.empty(len(column), np.uint64)
    order = np.argsort(sizes, kind="stable")
    ends = np.flatnonzero(np.diff(sizes[order])) + 1
    for rows in np.split(order, ends) if len(order) else ():  # all of one length
        size = int(sizes[rows[0]])
        block = np.empty((len(rows), len(head) + size), np.uint8)
        block[:, : len(head)] = head
        if size:
            block[:, len(head) :] = data[offsets[rows][:, None] + np.arange(size)]
        out[rows] = _hash(block)
    return out


def _hash(block: np.ndarray) -> np.ndarray:
    """Hashes of N byte strings of one length [N, L]."""
    n, length = block.shape
    at = 0
    with np.errstate(over="ignore"):
        if length >= 32:
            lanes = [np.full(n, seed) for seed in (_P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1)]
            while at + 32 <= length:
                words = _words(block, at, 8, 4)
                lanes = [_round(lane, words[:, i]) for i, lane in enumerate(lanes)]
                at += 32
            total = sum(
                (_rotate(lane, r) for lane, r in zip(lanes, (1, 7, 12, 18), strict=True)), np.zeros(n, np.uint64)
            )
            for lane in lanes:
                total = (total ^ _round(np.uint64(0), lane)) * _P1 + _P4
        else:
            total = np.full(n, _P5)
        total = total + np.uint64(length)
        while at + 8 <= length:
            total = _absorb(total, _words(block, at, 8, 1)[:, 0])
            at += 8
        if at + 4 <= length:
            total ^= _words(block, at, 4, 1)[:, 0] * _P1
            total = _rotate(total, 23) * _P2 + _P3
            at += 4
        while at < length:
            total ^= block[:, at].astype(np.uint64) * _P5
            total = _rotate(total, 11) * _P1
            at += 1
        return _avalanche(total)


def _avalanche(total: np.ndarray) -> np.ndarray:
    total = (total ^ (total >> np.uint64(33))) * _P2
    total = (total ^ (total >> np.uint64(29))) * _P3
    return total ^ (total >> np.uint64(32))


def _words(block: np.ndarray, at: int, size: int, count: int) -> np.ndarray:
    """Little-endian words [N, count] from byte ``at`` on."""
    part = np.ascontiguousarray(block[:, at : at + size * count])
    return part.view("<u8" if size == 8 else "<u4").astype(np.uint64)


def _absorb(total: np.ndarray | np.uint64, word: np.ndarray) -> np.ndarray:
    """Mix in 8 bytes."""
    return _rotate(total ^ _round(np.uint64(0), word), 27) * _P1 + _P4


def _round(lane: np.ndarray | np.uint64, word: np.ndarray) -> np.ndarray:
    return _rotate(lane + word * _P2, 31) * _P1


def _rotate(value: np.ndarray, bits: int) -> np.ndarray:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))
