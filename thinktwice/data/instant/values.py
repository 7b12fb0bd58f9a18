"""Counters from sums: the only code that computes a counter, for rows of a log and for candidates of a request.

Both ways of counting (:mod:`thinktwice.data.instant.log_counters` over a whole log, :mod:`thinktwice.data.instant.state` outcome by outcome)
produce the same integers. Every step from there is an exactly rounded elementwise operation, so equal sums give equal bits,
in arrays of any shape, on any machine.

Shapes: n rows, W windows, K lengths of ``last``, X crossed fields, C counters of one side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thinktwice.data.instant.definition import (
    FIRST_RATE,
    FIRST_VIEWS,
    RATE_PRIOR,
    RESIDUAL_BITS,
    RESIDUAL_PRIOR,
    SECOND_US,
    Side,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_SCALE = float(2**RESIDUAL_BITS)
_SQRT_HALF, _LN2 = 0.7071067811865476, 0.6931471805599453


@dataclass(frozen=True)
class Sums:
    """Sums of one side as of the instants of n rows, int64.

    Attributes:
        views: outcomes [n]; 0 is an unknown user or item, whose counters are all NaN.
        clicks: clicks among them [n].
        log_views, log_clicks: outcomes and clicks of the whole log before the latest outcome of the key [n].
        gap, age: microseconds since its latest impression with a known outcome, and since its latest outcome was known [n].
        window_views: [n, W].
        crossed_views: [n, X]; -1 where the crossed value is missing.
        sums: [n, (1 +) K + W + X] residuals (user: all, last, windows, crossed) or clicks (item: last, windows, crossed).
    """

    views: Ints
    clicks: Ints
    log_views: Ints
    log_clicks: Ints
    gap: Ints
    age: Ints
    window_views: Ints
    crossed_views: Ints
    sums: Ints


def counters(sums: Sums, last: tuple[int, ...], side: Side) -> npt.NDArray[np.float32]:
    """Counters of one side, float32 [n, C] in the order of ``Definition.counters_of``; NaN is unknown."""
    rows, windows, crossed = len(sums.views), sums.window_views.shape[1], sums.crossed_views.shape[1]
    counts = 1 + windows + crossed
    views = np.empty((rows, counts), np.int64)
    views[:, 0] = sums.views
    views[:, 1 : 1 + windows] = sums.window_views
    np.maximum(sums.crossed_views, 0, out=views[:, 1 + windows :])
    logs = np.empty((rows, counts + 2))
    logs[:, :counts] = views
    logs[:, counts] = np.maximum(sums.gap, 0) / SECOND_US
    logs[:, counts + 1] = np.maximum(sums.age, 0) / SECOND_US
    rate = smoothed(sums.clicks, sums.views, log_rate(sums.log_clicks, sums.log_views))
    lengths = [np.minimum(sums.views, k)[:, None] for k in last]
    if side == "user":
        outcomes = np.concatenate([views[:, :1], *lengths, views[:, 1:]], axis=1)
        residual = (sums.sums / _SCALE) / (outcomes + RESIDUAL_PRIOR)
    else:
        outcomes = np.concatenate([*lengths, views[:, 1:]], axis=1)
        residual = smoothed(sums.sums, outcomes, rate[:, None])
    out = np.empty((rows, counts + 3 + residual.shape[1]), np.float32)
    out[:, : counts + 2] = log1p(logs)
    out[:, counts + 2] = rate
    out[:, counts + 3 :] = residual
    if crossed:
        missing = sums.crossed_views < 0
        out[:, counts - crossed : counts][missing] = np.nan
        out[:, -crossed:][missing] = np.nan
    out[sums.views == 0] = np.nan
    return out


def log_rate(clicks: Ints, views: Ints) -> Floats:
    """Click rate of the whole log, from its outcomes so far."""
    return (clicks + FIRST_VIEWS * FIRST_RATE) / (views + FIRST_VIEWS)


def smoothed(clicks: Ints, views: Ints, towards: Floats) -> Floats:
    """Click rate smoothed towards ``towards``."""
    return (clicks + RATE_PRIOR * towards) / (views + RATE_PRIOR)


def residuals(clicked: npt.NDArray[np.bool_], rate: Floats) -> Ints:
    """Click minus ``rate``, in units of ``2**-RESIDUAL_BITS``."""
    return clicked.astype(np.int64) * 2**RESIDUAL_BITS - np.rint(rate * _SCALE).astype(np.int64)


def log1p(x: Floats) -> Floats:
    """log(1 + x) of finite x >= 0, to 1e-11.

    numpy's version depends on the processor; this one has the same bits on all.
    """
    mantissa, exponent = np.frexp(1.0 + x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    series = np.full_like(square, 2 / 13)
    for power in (11, 9, 7, 5, 3, 1):
        series *= square
        series += 2 / power
    return (exponent - low) * _LN2 + ratio * series
