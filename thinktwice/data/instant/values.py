"""Counters from sums: the only code that computes a counter, for rows of a log and for candidates of a request.

Both ways of counting (:mod:`thinktwice.data.instant.log_counters` over a whole log, :mod:`thinktwice.data.instant.state` outcome by outcome)
produce the same integers. Every step from there is an exactly rounded elementwise operation, so equal sums give equal bits,
in arrays of any shape, on any machine.

Shapes: n rows, m is n or 1 for rows of one key, W windows, K lengths of ``last``, X crossed fields, C counters of one side.
"""

from __future__ import annotations

import math
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

FEW = 4  # numbers whose logarithm is computed one by one
_SCALE = float(2**RESIDUAL_BITS)
_SQRT_HALF, _LN2 = 0.7071067811865476, 0.6931471805599453
# Operands as arrays, because numpy takes longer for a Python number than for the operation on a few hundred of them.
_ONE, _TWO = np.array(1.0), np.array(2.0)
_SERIES = tuple(np.array(2 / power) for power in (13, 11, 9, 7, 5, 3))
_SQRT_HALF_BITS = np.array(_SQRT_HALF).view(np.int64)
_EXPONENT_MASK = np.array(-1 << 52)
_ZERO, _SECOND = np.array(0), np.array(float(SECOND_US))
_DIFFERENCE = 1e-11  # 20 times what the series leaves out
_ENDS = np.array([-_DIFFERENCE, _DIFFERENCE]).reshape(2, 1, 1)


@dataclass(frozen=True)
class Sums:
    """Sums of one side as of the instants of n rows, whole numbers.

    Attributes:
        views: outcomes [m]; 0 is an unknown user or item, whose counters are all NaN.
        clicks: clicks among them [m].
        log_views, log_clicks: outcomes and clicks of the whole log before the latest outcome of the key [m].
        since: microseconds since its latest impression with a known outcome, and since its latest outcome was known [m, 2];
            anything for an unknown key. None: the counters of seconds are 0 for now.
        window_views: [m, W].
        sums: [m, (1 +) K + W] residuals (user: all, last, windows) or clicks (item: last, windows); int64, or float64 below
            2**53.
        crossed_views: [n, X]; -1 where the crossed value is missing.
        crossed_sums: [n, X] residuals or clicks.
    """

    views: Ints
    clicks: Ints
    log_views: Ints
    log_clicks: Ints
    since: Ints | None
    window_views: Ints
    sums: Ints | Floats
    crossed_views: Ints
    crossed_sums: Ints


def counters(sums: Sums, last: tuple[int, ...], side: Side) -> npt.NDArray[np.float32]:
    """Counters of one side, float32 [n, C] in the order of ``Definition.counters_of``; NaN is unknown."""
    views, (rows, crossed), windows = sums.views, sums.crossed_views.shape, sums.window_views.shape[1]
    seen = 1 + windows  # columns of counts before the crossed ones
    counts = seen + crossed
    first = counts + 3  # column of residuals or rates
    out = np.empty((rows, first + sums.sums.shape[1] + crossed), np.float32)
    number = np.empty((len(views), seen), np.int64)
    number[:, 0], number[:, 1:] = views, sums.window_views
    out[:, :seen] = log1p_counts(number)
    out[:, counts : counts + 2] = 0.0 if sums.since is None else elapsed(sums.since)
    rate = smoothed(sums.clicks, views, log_rate(sums.log_clicks, sums.log_views))
    out[:, counts + 2] = rate
    lengths = np.minimum(views[:, None], np.array(last, np.int64))
    if side == "user":
        outcomes = np.concatenate([number[:, :1], lengths, number[:, 1:]], axis=1)
        out[:, first : out.shape[1] - crossed] = (sums.sums / _SCALE) / (outcomes + RESIDUAL_PRIOR)
    else:
        outcomes = np.concatenate([lengths, number[:, 1:]], axis=1)
        out[:, first : out.shape[1] - crossed] = smoothed(sums.sums, outcomes, rate[:, None])
    if crossed:
        outcomes = np.maximum(sums.crossed_views, 0)
        out[:, seen:counts] = log1p_counts(outcomes)
        if side == "user":
            out[:, -crossed:] = (sums.crossed_sums / _SCALE) / (outcomes + RESIDUAL_PRIOR)
        else:
            out[:, -crossed:] = smoothed(sums.crossed_sums, outcomes, rate[:, None])
        if sums.crossed_views.min(initial=0) < 0:
            missing = sums.crossed_views < 0
            out[:, seen:counts][missing] = np.nan
            out[:, -crossed:][missing] = np.nan
    if len(views) == rows:
        out[views == 0] = np.nan
    elif views[0] == 0:
        out[:] = np.nan
    return out


def elapsed(since: Ints) -> Floats:
    """Counters of seconds of microseconds, of any shape; 0 if negative."""
    return log1p(np.maximum(since, 0) / SECOND_US)


def elapsed_float32(since: Ints) -> npt.NDArray[np.float32]:
    """:func:`elapsed` as float32 [n, 2], to the bit, several times faster for many numbers.

    The logarithm of this processor differs from :func:`log1p` by less than :data:`_DIFFERENCE`. Where both ends of that range are one
    number in float32, it is the one; the few other numbers are computed by :func:`log1p`.
    """
    seconds = np.maximum(since, _ZERO) / _SECOND
    low, high = (np.log1p(seconds) + _ENDS).astype(np.float32)
    unclear = low != high
    if np.count_nonzero(unclear):
        low[unclear] = log1p(seconds[unclear])
    return low


def log_rate(clicks: Ints, views: Ints) -> Floats:
    """Click rate of the whole log, from its outcomes so far."""
    return (clicks + FIRST_VIEWS * FIRST_RATE) / (views + FIRST_VIEWS)


def smoothed(clicks: Ints | Floats, views: Ints, towards: Floats) -> Floats:
    """Click rate smoothed towards ``towards``."""
    return (clicks + RATE_PRIOR * towards) / (views + RATE_PRIOR)


def residuals(clicked: npt.NDArray[np.bool_], rate: Floats) -> Ints:
    """Click minus ``rate``, in units of ``2**-RESIDUAL_BITS``."""
    return clicked.astype(np.int64) * 2**RESIDUAL_BITS - np.rint(rate * _SCALE).astype(np.int64)


def log1p_counts(counts: Ints) -> npt.NDArray[np.floating]:
    """:func:`log1p` of counts, which is read from a table unless one is large; for an array of any shape."""
    if counts.size == 0 or counts.max() >= len(_LOG1P):
        return log1p(counts.astype(np.float64))
    return _LOG1P[counts]


def log1p(x: Floats) -> Floats:
    """log(1 + x) of finite x >= 0, to 1e-11.

    numpy's version depends on the processor; this one has the same bits on all.
    """
    if x.size <= FEW:  # numpy takes a microsecond for each of these steps, whatever the size
        return np.array([_log1p_one(value) for value in x.ravel().tolist()]).reshape(x.shape)
    mantissa = np.add(x, _ONE)
    bits = mantissa.view(np.int64)
    above = np.subtract(bits, _SQRT_HALF_BITS)
    exponent = np.right_shift(above, 52)  # of 2, where the mantissa is from sqrt(1/2) on
    above &= _EXPONENT_MASK
    bits -= above
    ratio = np.subtract(mantissa, _ONE)
    mantissa += _ONE
    ratio /= mantissa
    square = np.multiply(ratio, ratio, out=mantissa)
    series = square * _SERIES[0]
    for coefficient in _SERIES[1:]:
        series += coefficient
        series *= square
    series += _TWO
    series *= ratio
    return np.add(np.multiply(exponent, _LN2), series, out=series)


def _log1p_one(x: float) -> float:
    """The steps of :func:`log1p` for one number."""
    mantissa, exponent = math.frexp(1.0 + x)
    low = mantissa < _SQRT_HALF
    mantissa = mantissa * 2.0 if low else mantissa
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    series = 2 / 13
    for power in (11, 9, 7, 5, 3, 1):
        series = series * square + 2 / power
    return (exponent - low) * _LN2 + ratio * series


_LOG1P = log1p(np.arange(1 << 14, dtype=np.float64)).astype(np.float32)
