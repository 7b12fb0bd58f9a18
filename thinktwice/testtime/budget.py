"""The extra rows that a request can still afford before its deadline, possibly none."""

from __future__ import annotations

RESERVE = 1.2  # safety factor on the measured cost of a base pass, so that a slow one still meets the deadline


def extra_rows(left_ms: float, base_ms: float, row_ms: float) -> int:
    """Extra rows that fit into ``left_ms`` after a base pass of ``base_ms`` at ``row_ms`` each; 0 if none does.

    Queueing time is already subtracted from ``left_ms``: under overload the cap falls to 0, and a request costs one forward
    pass per row.
    """
    if row_ms <= 0:
        raise ValueError(f"row_ms must be positive, not {row_ms}: measure the cost of a row first")
    return max(0, int((left_ms - RESERVE * base_ms) / row_ms))
