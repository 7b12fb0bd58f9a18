"""Further trunks, trained apart from the first: their mean errs less where they differ by chance of training.

The mean is of logits. A member with a table of its own looks its own field vectors up, gated like the model's when the
base pass is gated; one that shares the model's table gets the vectors that were looked up already.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thinktwice.models.backends.backend import Backend, Eager
from thinktwice.testtime.opinions.escalated import EscalatedRows, SecondPass


def answer(escalated: EscalatedRows, members: Sequence[Backend]) -> SecondPass:
    """The mean logit of the base pass and of ``members``, each with the table that its base pass would read."""
    total = escalated.z0.copy()
    for member in members:
        looked_up = isinstance(member, Eager) and member.model.embedding.table is escalated.model.embedding.table
        state = (escalated.x,) if looked_up else member.read(escalated.batch)
        total += member.logits(state).double().numpy()
    return SecondPass(total / (1 + len(members)), np.full(len(total), len(members)))
