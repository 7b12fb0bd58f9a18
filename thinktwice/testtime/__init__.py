"""Thinking twice: reliability from counts, the trigger, the paths, and the engine that puts them together."""

from thinktwice.testtime.config import TestTimeConfig

__all__ = ["TestTimeConfig"]
