"""The step ``analyse``."""
