"""The small model for all tests of this folder."""

from tests.serving.small import small

__all__ = ["small"]
