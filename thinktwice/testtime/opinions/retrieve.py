"""The user's outcomes on items similar to the candidate, read when a row of the request is escalated.

A row keeps its first score if the history cannot be read in time or contains no item that the model knows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thinktwice.data.evidence import History
from thinktwice.testtime.evidence.correction import CounterInputs, Logits
from thinktwice.testtime.evidence.retrieval import Retrieval
from thinktwice.testtime.opinions.escalated import SecondPass


def answer(
    first: Logits,
    items: npt.NDArray[np.int64],
    inputs: CounterInputs,
    rows: npt.NDArray[np.int64],
    history: History | None,
    retrieval: Retrieval,
) -> SecondPass:
    """Logits of U rows with these ``first`` logits and candidates ``items`` [U], which are the ``rows`` [U] of ``inputs``."""
    if history is None:
        return SecondPass(first, np.zeros(len(first), np.int64))
    features, has_outcome = retrieval.neighbours.features(items, history)
    changed = first + retrieval.changes(first, inputs, rows, features)
    return SecondPass(np.where(has_outcome, changed, first), has_outcome.astype(np.int64))
