"""The step ``join``."""
