"""Rows chosen by a hash of their content: the control that every other trigger must beat at the same rate."""

from __future__ import annotations

import numpy as np

from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.rowhash import uniforms
from thinktwice.testtime.triggers.seen import Marked, Seen

_STREAM = np.uint64(0xA5A5A5A5)  # apart from the draws of the samplers


def mark(config: TestTimeConfig, seen: Seen) -> Marked:
    signal = uniforms(seen.row_hash ^ _STREAM, 1)[:, 0]
    return Marked(signal, signal > config.threshold)
