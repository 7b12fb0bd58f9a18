"""Thinking twice: reliability from counts, the trigger, the paths, and the engine that puts them together."""

from thinktwice.testtime.config import Affine, FitConfig, TestTimeConfig

__all__ = ["Affine", "FitConfig", "TestTimeConfig"]
