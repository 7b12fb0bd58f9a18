"""The step ``bless``: compare the candidate with the champion."""

from components.evaluation.bless.component import bless

__all__ = ["bless"]
