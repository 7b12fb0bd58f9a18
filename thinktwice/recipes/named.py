"""The named recipes, one function each."""

from __future__ import annotations

from collections.abc import Callable

from thinktwice.choices import RecipeName
from thinktwice.models.config import AutoIntConfig, DCNv2Config, DeepFMConfig
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.recipes.recipe import Recipe
from thinktwice.train.config import FinetuneConfig


def default() -> Recipe:
    """For a log of unknown size: length, L2, augmentation and the share of unknown values are found on validation, in ten
    epochs."""
    return Recipe(
        finetune=FinetuneConfig(
            schedule="averaged",
            rate=3e-3,
            table_l2=(5e-4,),
            epochs=16.0,
            budget=10.0,
            unknown_share=0.0,
            unknown_shares=(0.01,),
        )
    )


def dcnv2() -> Recipe:
    """The default with full-matrix cross layers in place of pairwise products: slower, for logs of many rows."""
    return default().model_copy(update={"model": DCNv2Config()})


def autoint() -> Recipe:
    """The default with self-attention over the fields in place of pairwise products: the slowest of the three."""
    return default().model_copy(update={"model": AutoIntConfig()})


def ml_1m() -> Recipe:
    """MovieLens-1M on two cores in a few minutes.

    Trials of two epochs: shorter ones favour weak L2, because overfitting, which L2 prevents, comes late.
    """
    return Recipe(
        pretrain=PretrainConfig(epochs=1.0),
        finetune=FinetuneConfig(table_l2=(3e-4, 1e-3), trial_epochs=2.0, epochs=6.0),
    )


def ml_100k() -> Recipe:
    """MovieLens-100K on two cores in under half a minute."""
    return Recipe(
        pretrain=PretrainConfig(batch_size=1024, epochs=2.0),
        finetune=FinetuneConfig(table_l2=(1e-3, 3e-3), trial_epochs=1.0, epochs=4.0),
    )


def tiny() -> Recipe:
    """For tests: seconds on a few thousand rows; the result is a working model, not a good one."""
    return Recipe(
        model=DeepFMConfig(dim=4, hidden=(16,)),
        pretrain=PretrainConfig(batch_size=256, epochs=1.0),
        finetune=FinetuneConfig(batch_size=256, table_l2=(1e-3,), augmentations=("none",), epochs=4.0),
    )


RECIPES: dict[RecipeName, Callable[[], Recipe]] = {
    "default": default,
    "dcnv2": dcnv2,
    "autoint": autoint,
    "ml-1m": ml_1m,
    "ml-100k": ml_100k,
    "tiny": tiny,
}
