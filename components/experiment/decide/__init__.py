"""The step ``decide``."""
