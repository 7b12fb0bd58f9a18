"""Thin support first, an open score on top (UTTSI): a well supported coin flip is label noise, which no pass removes."""

from __future__ import annotations

from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.triggers.seen import Marked, Seen


def mark(config: TestTimeConfig, seen: Seen) -> Marked:
    signal = seen.missing * (config.entropy_floor + (1 - config.entropy_floor) * seen.bits)
    return Marked(signal, signal > config.threshold)
