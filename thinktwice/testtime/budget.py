"""How many extra rows a request may still cost: what is left before its deadline, down to none."""

from __future__ import annotations

RESERVE = 1.2  # the base pass is estimated this much more expensive than measured, so that a slow one is not late


def extra_rows(left_ms: float, base_ms: float, row_ms: float) -> int:
    """Extra rows that fit into ``left_ms`` after a base pass of ``base_ms`` at ``row_ms`` each; 0 when nothing is left.

    A queue before the request has already eaten from ``left_ms``: under overload the cap reaches 0 by itself, and a request
    costs one forward pass per row.
    """
    if row_ms <= 0:
        raise ValueError(f"row_ms must be positive, not {row_ms}: measure the cost of a row first")
    return max(0, int((left_ms - RESERVE * base_ms) / row_ms))
