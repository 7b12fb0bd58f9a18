"""Generative pre-training: see :func:`thinktwice.pretrain.pretrain.pretrain`."""

from thinktwice.pretrain.config import PretrainConfig

__all__ = ["PretrainConfig"]
