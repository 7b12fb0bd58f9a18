"""Where the model is weak: slices of test rows against all other rows, honest about their number.

Shapes: R test rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from thinktwice.evaluate.extra_work_record import TestedChange
from thinktwice.evaluate.findings import sentences
from thinktwice.evaluate.findings.record import SliceKind, Weakness, WeakSlice
from thinktwice.evaluate.slices import MIN_ROWS
from thinktwice.stats.metrics import logloss
from thinktwice.stats.multiple import holm
from thinktwice.stats.seeds import two_sided_p
from thinktwice.stats.significance import (
    Interval,
    auc_influence,
    auc_interval,
    clusters_of,
    influence_interval,
    paired_mean,
)
from thinktwice.versioned import MeasuredInterval

MAX_ROWS = 200_000  # test rows that slices are measured on
MAX_SLICES = 60  # the largest


@dataclass(frozen=True)
class Slice:
    """Rows [R] of a name."""

    name: str
    kind: SliceKind
    mask: np.ndarray


@dataclass(frozen=True)
class _Measured:
    """``gap`` is None where an AUC is not defined."""

    of: Slice
    gap: Interval | None
    bias: Interval


def weakness(label: np.ndarray, logit: np.ndarray, cluster: np.ndarray, slices: list[Slice]) -> Weakness:
    """Every slice on labels [R] and log-odds [R] of what ships; ``cluster`` [R] user codes."""
    if len(label) > MAX_ROWS:
        index = np.linspace(0, len(label) - 1, MAX_ROWS).astype(np.int64)
        label, logit, cluster = label[index], logit[index], np.unique(cluster[index], return_inverse=True)[1]
        slices = [replace(one, mask=one.mask[index]) for one in slices]
    predicted = expit(logit)
    sized = [one for one in slices if min(rows := int(one.mask.sum()), len(label) - rows) >= MIN_ROWS]
    kept = sorted(sized, key=lambda one: -int(one.mask.sum()))[:MAX_SLICES]
    measured = [
        _Measured(one, auc_gap(label, logit, cluster, one.mask), _bias(predicted - label, cluster, one.mask))
        for one in kept
    ]
    gaps = [
        1.0 if m.gap is None else two_sided_p(m.gap, freedom=max(_freedom(cluster, m.of.mask), 1)) for m in measured
    ]
    biases = [two_sided_p(m.bias, freedom=max(len(np.unique(cluster[m.of.mask])) - 1, 1)) for m in measured]
    adjusted = holm([*gaps, *biases])
    found = [
        _weak_slice(m, label, logit, predicted, cluster, (gaps[i], adjusted[i]), (biases[i], adjusted[len(gaps) + i]))
        for i, m in enumerate(measured)
    ]
    ordered = tuple(sorted(found, key=_certainty))
    return Weakness(rows=len(label), slices=ordered, sentence=sentences.weakness(ordered))


def auc_gap(label: np.ndarray, logit: np.ndarray, cluster: np.ndarray, mask: np.ndarray) -> Interval | None:
    """AUC of the rows of ``mask`` minus that of all others; None if either has one class only.

    Of few users in either, the error is itself uncertain: the degrees of freedom are theirs.
    """
    if any(label[part].min() == label[part].max() for part in (mask, ~mask)):
        return None
    inside, inside_influence = auc_influence(label[mask], logit[mask])
    outside, outside_influence = auc_influence(label[~mask], logit[~mask])
    influence = np.empty(len(label))
    influence[mask], influence[~mask] = inside_influence, -outside_influence
    return influence_interval(inside - outside, influence, cluster, freedom=_freedom(cluster, mask))


def _freedom(cluster: np.ndarray, mask: np.ndarray) -> int:
    return min(len(np.unique(cluster[part])) for part in (mask, ~mask)) - 1


def _bias(error: np.ndarray, cluster: np.ndarray, mask: np.ndarray) -> Interval:
    return paired_mean(error[mask], clusters_of(cluster[mask]))


def _weak_slice(
    found: _Measured,
    label: np.ndarray,
    logit: np.ndarray,
    predicted: np.ndarray,
    cluster: np.ndarray,
    gap_p: tuple[float, float],
    bias_p: tuple[float, float],
) -> WeakSlice:
    """The record of a slice; ``gap_p`` and ``bias_p`` are p-values alone and adjusted."""
    mask = found.of.mask
    y, z = label[mask], logit[mask]
    gap = None if found.gap is None else TestedChange.of(found.gap, p_value=gap_p[0], p_holm=gap_p[1])
    return WeakSlice(
        name=found.of.name,
        kind=found.of.kind,
        rows=int(mask.sum()),
        click_rate=float(y.mean()),
        predicted=float(predicted[mask].mean()),
        logloss=logloss(y, z),
        auc=MeasuredInterval.of(auc_interval(y, z, clusters_of(cluster[mask]))),
        auc_gap=gap,
        bias=TestedChange.of(found.bias, p_value=bias_p[0], p_holm=bias_p[1]),
    )


def _certainty(one: WeakSlice) -> tuple[bool, float, str]:
    """Sorts by the upper end of the gap: what is certainly weak comes before what may be weak by chance."""
    gap = one.auc_gap
    high = None if gap is None else gap.high
    return high is None, 0.0 if high is None else high, one.name
