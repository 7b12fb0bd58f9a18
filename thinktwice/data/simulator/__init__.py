"""An ad log with known truth: every row keeps its true click probability and the probability with which it was shown."""

from thinktwice.data.simulator.config import SimConfig

__all__ = ["SimConfig"]
