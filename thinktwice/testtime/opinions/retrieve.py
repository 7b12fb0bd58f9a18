"""The user's outcomes on items similar to the candidate, read when a row of the request is escalated.

A row keeps its first score if the history cannot be read in time or contains no item that the model knows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thinktwice.data.evidence import History
from thinktwice.models.logit_network import Floats
from thinktwice.testtime.evidence.retrieval import Retrieval, with_features
from thinktwice.testtime.opinions.escalated import SecondPass


def answer(
    first: npt.NDArray[np.float64],
    items: npt.NDArray[np.int64],
    inputs: Floats,
    history: History | None,
    retrieval: Retrieval,
) -> SecondPass:
    """Logits of U rows with these ``first`` logits and candidates ``items`` [U]; ``inputs`` [U, 1 + 2 C] of their correction."""
    if history is None:
        return SecondPass(first, np.zeros(len(first), np.int64))
    features, has_outcome = retrieval.neighbours.features(items, history)
    change = retrieval.network(with_features(retrieval.standard, first, inputs, features))
    return SecondPass(np.where(has_outcome, first + change, first), has_outcome.astype(np.int64))
