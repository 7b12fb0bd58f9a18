"""A recipe: all settings of one training."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from thinktwice.choices import Pretraining
from thinktwice.models.config import AnyBackboneConfig, DeepFMConfig
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.selection.config import FitConfig
from thinktwice.train.config import FinetuneConfig


class Recipe(BaseModel):
    """All settings of one training, each owned by the part it configures.

    ``pretraining`` names what comes before fine-tuning: ``dgenctr`` restores masked fields, all with the same weight;
    ``hetegenctr`` learns the weights; ``none`` trains the plain model alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: AnyBackboneConfig = DeepFMConfig()
    pretraining: Pretraining = "dgenctr"
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    testtime: FitConfig = FitConfig()
