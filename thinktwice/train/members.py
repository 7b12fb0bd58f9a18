"""Further trunks for an ensemble: the mean of their logits has a lower error than each of them.

Every member costs a trunk pass at scoring. A member of kind ``own`` also has its own table, and so its own lookup; the other
kinds share one.
"""

from __future__ import annotations

from typing import Literal

from thinktwice.data.encoded import EncodedRows
from thinktwice.models.backbone import Backbone
from thinktwice.models.config import BackboneConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import Augmentation, FinetuneConfig
from thinktwice.train.joint import RankOne, SharedTables, Trainee
from thinktwice.train.loader import BlockLoader
from thinktwice.train.run import train as run_training

MemberKind = Literal["own", "shared_tables", "rank_one"]
JOINT = {"shared_tables": SharedTables, "rank_one": RankOne}


def fit_members(
    kind: MemberKind,
    train: EncodedRows,
    valid: EncodedRows,
    fields: FieldSpace,
    backbone: BackboneConfig,
    config: FinetuneConfig,
    *,
    table_l2: float,
    augmentation: Augmentation,
    count: int,
    seed: int,
) -> list[Backbone]:
    """``count`` models in evaluation mode on the CPU, trained for ``config.epochs`` with the given L2 and augmentation.

    ``own``: independent trainings of the seeds ``seed``, ``seed + 1`` and so on, each with its best weights on
    validation. ``shared_tables``: independent trunks over one embedding. ``rank_one``: trunks over one embedding whose
    matrices differ from a common one by rank-one factors (:class:`thinktwice.train.joint.RankOne`), multiplied out in
    the result. The last two are trained together in one run, at one lookup and ``count`` trunk passes per batch, keep the
    weights of the best mean logit on validation, and share one ``embedding`` object.
    """
    rows, looked_at = BlockLoader(train), BlockLoader(valid)
    augmenter = Augmenter(augmentation, train, fields, config)

    def run(model: Trainee, seed: int) -> None:
        run_training(model, augmenter, rows, looked_at, config, table_l2=table_l2, epochs=config.epochs, seed=seed)

    if kind == "own":
        models = [build_backbone(backbone, fields, seed=seed + i) for i in range(count)]
        for i, model in enumerate(models):
            run(model, seed + i)
        return models
    joint = JOINT[kind](backbone, fields, count=count, seed=seed)
    run(joint, seed)
    return joint.members()
