"""Every row is asked again."""

from __future__ import annotations

import numpy as np

from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.triggers.seen import Marked, Seen


def mark(config: TestTimeConfig, seen: Seen) -> Marked:
    return Marked(np.full(len(seen.missing), np.inf), np.ones(len(seen.missing), bool))
