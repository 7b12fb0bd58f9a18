"""Sample-ratio test: whether the split of units between arms matches the planned one. It is sequential and valid at any time.

Counts of units are multinomial with the planned shares p if assignment works. The Bayes factor against that with a Dirichlet
prior around p of concentration k (Lindon and Malek 2022),

    E = Γ(k) / Γ(k + n) · Π Γ(k pᵢ + nᵢ) / Γ(k pᵢ) · Π pᵢ^(-nᵢ),

is a martingale if the split is right, so P(E >= 1 / α at any time) <= α. A wide prior (small k) detects gross errors in a
few units, a narrow one detects 50.2 / 49.8 in a million; the mean of martingales is a martingale, so a mixture of three
detects both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONCENTRATIONS = ((30.0, 0.1), (1_000.0, 0.2), (30_000.0, 0.7))  # (k, weight)
ALPHA = 0.01  # maximum share of correct splits that ever raise an alarm; over 28 daily looks it is about 0.2 %


@dataclass(frozen=True)
class SampleRatio:
    """Result of one test of the split.

    Attributes:
        p: always-valid p-value; the smallest so far is valid too.
        counts, expected: units by arm.
        mismatch: p < alpha.
    """

    p: float
    counts: tuple[int, ...]
    expected: tuple[float, ...]
    mismatch: bool


def sample_ratio(counts: Sequence[int], shares: Sequence[float], alpha: float = ALPHA) -> SampleRatio:
    """Test counts of units against planned shares (of any sum).

    Raises:
        ValueError: lengths differ, a count is negative, or a share is not above 0.
    """
    if len(counts) != len(shares) or len(counts) < 2:
        raise ValueError(f"{len(counts)} counts for {len(shares)} shares; at least two of each are needed")
    if min(counts) < 0 or min(shares) <= 0:
        raise ValueError(f"counts {list(counts)} must not be negative and shares {list(shares)} must be above 0")
    share = np.asarray(shares, np.float64) / float(np.sum(shares))
    total = int(sum(counts))
    p = min(1.0, math.exp(-log_e_value(counts, share)))
    return SampleRatio(p, tuple(int(c) for c in counts), tuple(float(s) * total for s in share), p < alpha)


def log_e_value(counts: Sequence[int], share: np.ndarray) -> float:
    """Logarithm of the mixture martingale for these counts."""
    n = np.asarray(counts, np.float64)
    parts = [math.log(weight) + log_bayes_factor(n, share, k) for k, weight in CONCENTRATIONS]
    return float(special.logsumexp(parts))


def log_bayes_factor(n: np.ndarray, share: np.ndarray, k: float) -> float:
    """Logarithm of the martingale of one prior: counts [A], shares [A] that sum to 1, concentration k."""
    prior = k * share
    inside = special.gammaln(prior + n) - special.gammaln(prior) - n * np.log(share)
    return float(special.gammaln(k) - special.gammaln(k + n.sum()) + inside.sum())
