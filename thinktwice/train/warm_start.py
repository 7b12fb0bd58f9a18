"""The weights that a training starts from when it continues an earlier model on a later log."""

from __future__ import annotations

import torch
from torch import Tensor

from thinktwice.data.encoder import Encoder
from thinktwice.data.training_set import TrainingSet
from thinktwice.errors import DataError
from thinktwice.models import Backbone, FieldSpace, build_backbone, load_model
from thinktwice.models.backbone import EMBEDDING
from thinktwice.models.config import BackboneConfig

FREE = ("dropout", "init_sd")  # options that no tensor of a trained model depends on
FIX = "train from scratch, or by the recipe of that bundle"


def continued_model(data: TrainingSet, fields: FieldSpace, backbone: BackboneConfig, *, seed: int) -> Backbone | None:
    """The earlier model of a training set with the vocabularies of ``fields``; None for a training set without one.

    Values keep their rows. New values of a column start as its unknown value, by which they were scored so far; new values of a
    list, which had no vector, as they are initialised with the seed. All other weights are those of the earlier model.

    Raises:
        DataError: the earlier model has another backbone or fields; the message says what differs.
        BundleError: it is damaged.
    """
    if data.start is None:
        return None
    earlier, _ = load_model(data.start)
    check_backbone(backbone, earlier.config)
    _check_rows(data.encoder, Encoder.load(data.start), earlier.fields, fields)
    model = build_backbone(backbone, fields, seed=seed)
    lists = {f"{EMBEDDING}sequences.{fields.sequences.index(name)}.values": name for name in fields.own_lists}
    weights, before = model.state_dict(), earlier.state_dict()
    with torch.no_grad():
        for name, value in weights.items():
            if name == f"{EMBEDDING}table":
                _copy_columns(value, before[name], fields, earlier.fields)
            elif name in lists:
                value[: len(before[name])] = before[name]
            elif name not in before or value.shape != before[name].shape:
                raise DataError(f"the bundle to continue from has another {name!r} than the recipe's backbone: {FIX}")
            else:
                value.copy_(before[name])
    return model.eval()


def check_backbone(wanted: BackboneConfig, found: BackboneConfig) -> None:
    """Raise DataError, which says what differs, if a model of the config ``found`` cannot continue as one of ``wanted``."""
    if different := _different_backbone(wanted, found):
        raise DataError(f"the bundle to continue from has another backbone than the recipe ({different}): {FIX}")


def _copy_columns(table: Tensor, before: Tensor, fields: FieldSpace, earlier: FieldSpace) -> None:
    """Rows [rows, D] of the earlier table, column by column; the rows of new values are those of the unknown one."""
    for start, old, size, old_size in zip(
        fields.offsets, earlier.offsets, fields.num_values, earlier.num_values, strict=True
    ):
        table[start : start + size] = before[old]
        table[start : start + old_size] = before[old : old + old_size]


def _different_backbone(wanted: BackboneConfig, found: BackboneConfig) -> str:
    """The first option that the two have different; "" if they agree."""
    if wanted.name != found.name:
        return f"{found.name} and not {wanted.name}"
    ours, theirs = wanted.model_dump(), found.model_dump()
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in FREE and ours.get(name) != theirs.get(name):
            return f"{name} is {theirs.get(name)} and not {ours.get(name)}"
    return ""


def _check_rows(encoder: Encoder, before: Encoder, earlier: FieldSpace, fields: FieldSpace) -> None:
    """Refuse weights whose rows are of other values than those of the encoder."""
    grown = {"num_values", "list_values"}
    same = earlier.model_dump(exclude=grown) == fields.model_dump(exclude=grown)
    if not same or not encoder.continues(before):
        raise DataError("the training set does not continue the model in it: build the training set again")
