"""Scores of an engine: before calibration, and as they are answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Raw:
    """Scores before calibration, per row [B]: base logit ``z0``, final logit ``z``, ``missing`` support, trigger
    ``signal``, number of forward passes ``num_paths``, mask ``capped_rows`` of uncertain rows that the cap did not admit,
    ``first`` logit (the corrected one, or the base logit), mask of ``corrected`` rows, and mask ``counted`` of rows whose counters
    were known and used, by the correction or by the model. ``entropy`` of the first score in bits, as the trigger read it; 0 without
    a second look."""

    z0: np.ndarray
    z: np.ndarray
    missing: np.ndarray
    signal: np.ndarray
    num_paths: np.ndarray
    capped_rows: np.ndarray
    first: np.ndarray
    corrected: np.ndarray
    counted: np.ndarray
    entropy: np.ndarray

    @property
    def escalated(self) -> np.ndarray:
        """Rows [B] with a second opinion."""
        return self.num_paths > 1


@dataclass(frozen=True)
class Scored:
    """Scores of B rows.

    logit [B] float64 calibrated log-odds; probability [B] float64; uncertainty [B] float64 in 0..1, the mean of the entropy of
    the probability in bits (uncertainty of the model) and of the missing support of the row's values (not seen in training),
    the same in every mode; num_paths [B] int64 passes per row, at least 1: forward passes, and one more for retrieved evidence;
    capped_rows [B] bool uncertain rows that kept their first score because of the cap; path_rows the passes beyond one per row;
    corrected [B] bool rows whose counters were known and used, by the correction or by a model that reads counters itself;
    base_probability [B] float64 after the base pass alone, the same array as probability if no score moved; thin_support [B] bool
    rows with a second opinion whose first score is uncertain more for missing support than for its entropy.
    """

    logit: np.ndarray
    probability: np.ndarray
    uncertainty: np.ndarray
    num_paths: np.ndarray
    capped_rows: np.ndarray
    path_rows: int
    corrected: np.ndarray
    base_probability: np.ndarray
    thin_support: np.ndarray

    @property
    def capped(self) -> bool:
        """Whether the cap on extra rows was binding."""
        return bool(self.capped_rows.any())
