"""Thinking twice: reliability from counts, the trigger, the paths, and the engine that puts them together."""

from thinktwice.testtime.config import FitConfig, TestTimeConfig

__all__ = ["FitConfig", "TestTimeConfig"]
