"""The step ``apply``."""
