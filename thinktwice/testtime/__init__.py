"""Thinking twice: reliability from counts, the trigger, the paths, and the engine that combines them."""

from thinktwice.testtime.config import TestTimeConfig

__all__ = ["TestTimeConfig"]
