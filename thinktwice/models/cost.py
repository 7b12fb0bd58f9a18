"""The cost of a forward pass, counted rather than timed."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def flops(call: Callable[[], object]) -> int:
    """Floating point operations in the matrix products of one call, two per multiply-add; elementwise work is free.

    Table lookups and pooling count nothing, so that for small models the ratio of two counts says more than the counts.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
