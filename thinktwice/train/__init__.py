"""Training on clicks: see :func:`thinktwice.train.finetune.finetune`, and :mod:`thinktwice.recipes` for settings."""

from thinktwice.train.config import FinetuneConfig

__all__ = ["FinetuneConfig"]
