"""The user's outcomes on items similar to the candidate, read when a row of the request is escalated.

A row keeps its first score if the history cannot be read in time or contains no item that the model knows.
"""

from __future__ import annotations

import numpy as np

from thinktwice.data.evidence import Evidence
from thinktwice.testtime.evidence.correction import CorrectionNetwork
from thinktwice.testtime.evidence.retrieval import Retrieval, retrieval_inputs
from thinktwice.testtime.opinions.escalated import EscalatedRows, SecondPass


def answer(
    escalated: EscalatedRows,
    column: int,
    evidence: Evidence,
    correction: CorrectionNetwork,
    retrieval: Retrieval,
) -> SecondPass:
    """Logits of rows with this ``evidence``; ``column`` is the index of the candidate item in their ids."""
    first = escalated.z0
    history = None if evidence.history is None else evidence.history()
    if history is None:
        return SecondPass(first, np.zeros(len(first), np.int64))
    items = escalated.batch.ids[:, column].numpy()
    features, has_outcome = retrieval.neighbours.features(items, history)
    inputs = retrieval_inputs(correction.standard, retrieval.standard, first, evidence.counters, features)
    change = retrieval.network(inputs)
    return SecondPass(np.where(has_outcome, first + change, first), has_outcome.astype(np.int64))
