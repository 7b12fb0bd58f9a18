"""Further trunks, trained apart from the first: their mean errs less where they differ by chance of training.

The mean is of logits. A member with a table of its own looks its own field vectors up, gated like the model's when the
base pass is gated; one that shares the model's table gets the vectors that were looked up already.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from thinktwice.models.backbone import Backbone
from thinktwice.testtime.blocks import ASKED_ROWS, in_blocks, padded_batch
from thinktwice.testtime.opinions.asked import Asked, Opinion


def answer(asked: Asked, members: Sequence[Backbone], tables: Sequence[torch.Tensor | None]) -> Opinion:
    """The mean logit of the base pass and of ``members``; ``tables`` are their gated tables, None where nothing is gated."""
    total = asked.z0.copy()
    for member, table in zip(members, tables, strict=True):
        if member.table is asked.model.table:
            z = in_blocks(lambda x, trunk=member: trunk.score(x)[:, 0], asked.x)
        else:
            z = _with_own_table(member, table, asked)
        total += z.double().numpy()
    return Opinion(total / (1 + len(members)), np.full(len(total), len(members)))


def _with_own_table(member: Backbone, table: torch.Tensor | None, asked: Asked) -> torch.Tensor:
    out = []
    for start in range(0, len(asked.batch), ASKED_ROWS):
        rows = asked.batch.select(slice(start, start + ASKED_ROWS))
        out.append(member.score(member.embed(padded_batch(rows, ASKED_ROWS), table))[: len(rows), 0])
    return torch.cat(out)
