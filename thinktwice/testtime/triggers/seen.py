"""What a trigger sees of the rows of one request after their base pass, and what it says of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Seen:
    """B rows: ``missing`` support 0..1 (what counts know), ``bits`` entropy of the score (what the model knows), calibrated
    ``logit``, ``row_hash`` uint64 of the content; all [B]. ``top_k`` is what the request asks for, if it says so."""

    missing: np.ndarray
    bits: np.ndarray
    logit: np.ndarray
    row_hash: np.ndarray
    top_k: int | None = None


@dataclass(frozen=True)
class Marked:
    """Signal [B] (larger is less sure) and the rows to ask again [B] bool."""

    signal: np.ndarray
    unsure: np.ndarray
