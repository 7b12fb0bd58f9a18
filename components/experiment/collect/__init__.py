"""The step ``collect``."""
