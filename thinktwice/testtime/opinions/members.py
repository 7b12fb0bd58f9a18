"""Further trunks, trained independently: averaging reduces the error that is due to randomness in training.

The mean is of logits. A member with its own table looks up its own field vectors, gated if the base pass is gated; a member
that shares the model's table reuses the vectors of the base pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thinktwice.models.backends.backend import Backend, Eager
from thinktwice.testtime.opinions.escalated import EscalatedRows, SecondPass


def answer(escalated: EscalatedRows, members: Sequence[Backend]) -> SecondPass:
    """The mean logit of the base pass and of ``members``, each with the table that its own base pass would use."""
    total = escalated.z0.copy()
    for member in members:
        looked_up = isinstance(member, Eager) and member.model.embedding.table is escalated.model.embedding.table
        state = (escalated.x,) if looked_up else member.read(escalated.batch)
        total += member.logits(state).double().numpy()
    return SecondPass(total / (1 + len(members)), np.full(len(total), len(members)))
