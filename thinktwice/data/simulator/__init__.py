"""Simulated ad log with known truth: every row contains its true click probability and its propensity."""

from thinktwice.data.simulator.config import SimConfig

__all__ = ["SimConfig"]
