"""Forward calls of one fixed shape: matrix kernels then see the same sizes whatever the request is, and give a row the
same bits alone or among others."""

from __future__ import annotations

from collections.abc import Callable

import torch

from thinktwice.data.encoded import Batch

BASE_ROWS = 128  # rows of one base pass
ASKED_ROWS = 32  # rows of one second opinion


def padded(value: torch.Tensor, rows: int) -> torch.Tensor:
    """``value`` with zero rows added up to ``rows``."""
    missing = rows - value.shape[0]
    return value if missing == 0 else torch.cat([value, value.new_zeros((missing, *value.shape[1:]))])


def padded_batch(batch: Batch, rows: int) -> Batch:
    """A batch with rows of unknown values added up to ``rows``."""
    return Batch(
        padded(batch.ids, rows),
        {k: padded(v, rows) for k, v in batch.sequences.items()},
        {k: padded(v, rows) for k, v in batch.vectors.items()},
    )


def in_blocks(call: Callable[..., torch.Tensor], *parts: torch.Tensor, rows: int = ASKED_ROWS) -> torch.Tensor:
    """``call`` on blocks of exactly ``rows`` rows of all ``parts`` [U, ...], its results [U, ...] joined; U is at least 1."""
    total, out = parts[0].shape[0], []
    for start in range(0, total, rows):
        block = [padded(p[start : start + rows], rows) for p in parts]
        out.append(call(*block)[: total - start])
    return out[0] if len(out) == 1 else torch.cat(out)
