"""The pipeline step `bless`."""

from components.evaluation.bless.component import bless

__all__ = ["bless"]
