"""Rows whose score is open: where opinions of equal spread move the probability most."""

from __future__ import annotations

from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.triggers.seen import Marked, Seen


def mark(config: TestTimeConfig, seen: Seen) -> Marked:
    return Marked(seen.bits, seen.bits > config.threshold)
