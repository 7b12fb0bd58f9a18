"""Forward calls of fixed shapes: matrix kernels see the same sizes for every request, and give a row the same bits alone or in
a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from thinktwice.data.encoded import Batch

BASE_ROWS = 128  # rows of one base pass
ESCALATED_ROWS = 32  # rows of one second opinion
FIXED = (BASE_ROWS,)
SIZES = (1, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 104, 112, 128, 160, 192, 256, 384, 512)
"""Rows of a call, for backends verified to give the same bits at all these sizes."""


def blocks_of(total: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First row and size of every block of ``total`` rows: the smallest of ``sizes``, ascending, that fits the remaining rows,
    else the largest."""
    start = 0
    while start < total:
        size = next((s for s in sizes if s >= total - start), sizes[-1])
        yield start, size
        start += size


def padded(value: torch.Tensor, rows: int) -> torch.Tensor:
    """``value`` padded to ``rows`` rows: with copies if it is a single row, else with zeros."""
    missing = rows - value.shape[0]
    if missing == 0:
        return value
    if value.shape[0] == 1 or value.stride(0) == 0:
        one = value if value.shape[0] == 1 else value[:1]
        return one.expand(rows, *value.shape[1:]).contiguous()
    return torch.cat([value, value.new_zeros((missing, *value.shape[1:]))])


def padded_batch(batch: Batch, rows: int) -> Batch:
    """A batch padded to ``rows`` rows."""
    return Batch(
        padded(batch.ids, rows),
        {k: padded(v, rows) for k, v in batch.sequences.items()},
        {k: padded(v, rows) for k, v in batch.vectors.items()},
        None if batch.counters is None else padded(batch.counters, rows),
        {k: padded(v, rows) for k, v in batch.weights.items()},
    )


def batch_in_blocks(
    call: Callable[[Batch], torch.Tensor], batch: Batch, sizes: tuple[int, ...] = (ESCALATED_ROWS,)
) -> torch.Tensor:
    """``call`` on blocks of the rows of ``batch``, its results [U, ...] joined; U is at least 1."""
    out = []
    for start, size in blocks_of(len(batch), sizes):
        rows = batch.select(slice(start, start + size))
        out.append(call(padded_batch(rows, size))[: len(rows)])
    return out[0] if len(out) == 1 else torch.cat(out)


def in_blocks(
    call: Callable[..., torch.Tensor], *parts: torch.Tensor, sizes: tuple[int, ...] = (ESCALATED_ROWS,)
) -> torch.Tensor:
    """``call`` on blocks of the rows of all ``parts`` [U, ...], its results [U, ...] joined; U is at least 1."""
    total, out = parts[0].shape[0], []
    if total in sizes:
        return call(*parts)
    for start, size in blocks_of(total, sizes):
        if size >= total:  # one block: nothing is cut
            return call(*(padded(p, size) for p in parts))[:total]
        block = [padded(p[start : start + size], size) for p in parts]
        out.append(call(*block)[: total - start])
    return out[0] if len(out) == 1 else torch.cat(out)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: small blocks gain nothing from more, and the number of threads may change the order of
    sums."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
