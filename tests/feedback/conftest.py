"""The small model, whose predictions are joined with clicks."""

from tests.serving.small import small

__all__ = ["small"]
