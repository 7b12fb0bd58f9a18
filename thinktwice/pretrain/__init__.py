"""Generative pre-training: see :func:`thinktwice.pretrain.pretrain.pretrain`."""

from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.pretrain import pretrain

__all__ = ["PretrainConfig", "pretrain"]
