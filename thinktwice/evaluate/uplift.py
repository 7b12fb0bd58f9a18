"""Does a trigger find the rows that a second opinion helps? The gain, row after row, in the order of its signal."""

from __future__ import annotations

import numpy as np


def uplift_curve(signal: np.ndarray, change: np.ndarray, points: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of logloss over all R rows when a share of them gets the second opinion, the largest signal first.

    Args:
        signal: [R] of the trigger.
        change: [R] of a row's logloss when it gets the second opinion (below 0 is better).

    Returns:
        shares [points + 1] from 0 to 1, and the mean change [points + 1] at each of them.
    """
    order = np.argsort(-signal, kind="stable")
    reached = np.concatenate([[0.0], np.cumsum(change[order])]) / len(change)
    shares = np.linspace(0.0, 1.0, points + 1)
    return shares, reached[np.round(shares * len(change)).astype(np.int64)]


def area(curve: tuple[np.ndarray, np.ndarray]) -> float:
    """Area between the straight line to the end of the curve (rows chosen by chance) and the curve, as a share of what
    the end is: above 0 where the signal finds the rows that gain most. 0 where the end is 0."""
    shares, change = curve
    if change[-1] == 0:
        return 0.0
    return float(np.trapezoid(change - shares * change[-1], shares) / abs(change[-1]) * -1.0)
