"""Distances between two samples of one distribution, and the distances expected by chance.

The distances by chance are computed and not sampled. For two samples of n and m independent rows in k bins the population
stability index is about (k - 1)(1/n + 1/m). Rows of a log are not independent: the rows of a request share their user and
context, and users return. So the variance of every bin is estimated between *clusters* of rows (users, else requests); n
and m are then the numbers of independent rows with the same variance, and a chi-square distribution of the same mean and
variance (Satterthwaite, as for survey data by Rao and Scott) gives the index that chance exceeds once in a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2

CONFIDENCE = 0.999  # share of samples of the same distribution that stay below the noise level
MIN_EXPECTED = 5.0  # independent rows that a bin needs; rarer bins are merged, as chi-square fails for them


@dataclass(frozen=True)
class Sample:
    """Rows per bin, and the variability of such a sample.

    Attributes:
        counts: rows [k] per bin.
        effective: number of independent rows with the same variance.
        uneven: 1 if all bins vary equally, more if a few vary most.
    """

    counts: np.ndarray
    effective: float
    uneven: float


@dataclass(frozen=True)
class Distance:
    """Between two samples.

    Attributes:
        psi: population stability index.
        expected: average index by chance alone; ``noise``: index that chance exceeds once in a thousand times.
        js: Jensen-Shannon distance, 0..1.
    """

    psi: float
    expected: float
    noise: float
    js: float


def distance(reference: Sample, bins: np.ndarray, clusters: np.ndarray) -> Distance:
    """Distances between a reference and rows with ``bins`` [R] and ``clusters`` [R]."""
    k = len(reference.counts)
    now = sample(bins, clusters, k)
    rows = min(reference.effective, now.effective)
    share = (_shares(reference.counts) + _shares(now.counts)) / 2
    rare = (share > 0) & (share * rows < MIN_EXPECTED)
    position = np.cumsum(~rare) - 1
    position[rare] = int((~rare).sum())  # the last bin contains them all
    merged = np.bincount(position, weights=reference.counts, minlength=position.max() + 1)
    now = sample(position[bins], clusters, len(merged))
    freedom = int(((merged > 0) | (now.counts > 0)).sum()) - 1
    expected = freedom * (1 / reference.effective + 1 / now.effective)
    width = np.sqrt(freedom) * (reference.uneven / reference.effective + now.uneven / now.effective)
    noise = 0.0
    if freedom > 0:
        degrees = (expected / width) ** 2
        noise = float(expected * chi2.ppf(CONFIDENCE, degrees) / degrees)
    index = psi(merged, now.counts)
    return Distance(index, float(expected), noise, jensen_shannon(merged, now.counts))


def psi(reference: np.ndarray, now: np.ndarray) -> float:
    """Population stability index of two arrays of row counts [k].

    Each sample gets one more row, distributed over the bins like both samples together: an empty bin then gives a large and
    not an infinite term, and a bin that is empty in both gives 0.
    """
    n, m = float(reference.sum()), float(now.sum())
    if n == 0 or m == 0:
        return 0.0
    both = (reference / n + now / m) / 2
    used = both > 0
    p = (reference[used] + both[used]) / (n + 1)
    q = (now[used] + both[used]) / (m + 1)
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(reference: np.ndarray, now: np.ndarray) -> float:
    """Jensen-Shannon distance of two arrays of row counts [k], 0..1: the square root of the divergence in bits."""
    if reference.sum() == 0 or now.sum() == 0:
        return 0.0
    with np.errstate(invalid="ignore"):  # for shares that are equal up to rounding, scipy may take the root of -1e-17
        value = float(jensenshannon(reference, now, base=2))
    return 0.0 if np.isnan(value) else value


def sample(bins: np.ndarray, clusters: np.ndarray, num_bins: int) -> Sample:
    """Sample of rows with ``bins`` [R] in 0..num_bins-1 and ``clusters`` [R], any integers."""
    rows = len(bins)
    counts = np.bincount(bins, minlength=num_bins).astype(np.float64)
    _, cluster = np.unique(clusters, return_inverse=True)
    groups = int(cluster.max()) + 1 if rows else 0
    used = np.flatnonzero(counts)
    if groups < 2:
        return Sample(counts, 1.0, 1.0)
    if len(used) < 2:
        return Sample(counts, float(groups), 1.0)
    share = counts[used] / rows
    position = np.full(num_bins, -1)
    position[used] = np.arange(len(used))
    by_group = csr_matrix((np.ones(rows), (cluster, position[bins])), shape=(groups, len(used)))
    sizes = np.asarray(by_group.sum(axis=1)).ravel()
    # Sums over clusters of d d', where d = counts of the cluster - its size * share.
    cross = np.asarray(by_group.T @ sizes).ravel()
    squares = np.asarray((by_group.T @ by_group).todense())
    summed = squares - np.outer(share, cross) - np.outer(cross, share) + np.outer(share, share) * float(sizes @ sizes)
    covariance = summed * groups / (groups - 1) / rows**2 / np.sqrt(np.outer(share, share))
    freedom = len(used) - 1
    expected = max(float(np.trace(covariance)), freedom / rows / 10)  # rows without random variation are still a sample
    uneven = float(np.linalg.norm(covariance)) * np.sqrt(freedom) / expected
    return Sample(counts, min(freedom / expected, float(rows)), max(uneven, 1.0))


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / max(float(counts.sum()), 1.0)
