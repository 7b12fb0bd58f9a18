"""The step that compares with the champion."""

from components.evaluation.bless.component import bless

__all__ = ["bless"]
