"""Rows of embeddings that no training row reads, which a continued training leaves as they are.

L2 alone would move them, and with Adam as far as a gradient of the data does: a user who is absent from one day's log would be
forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from thinktwice.data.encoded import EncodedRows
from thinktwice.models import Backbone
from thinktwice.models.backbone import EMBEDDING


@dataclass(frozen=True)
class UnreadRows:
    """By the name of a parameter: positions [n] and values [n, D] of its rows that no training row reads."""

    by_name: Mapping[str, tuple[Tensor, Tensor]]

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Put the values back."""
        for name, (rows, values) in self.by_name.items():
            parameter = model.get_parameter(name)
            parameter[rows.to(parameter.device)] = values.to(parameter.device)


def unread_rows(model: Backbone, train: EncodedRows) -> UnreadRows:
    """Those of a model that starts a training on ``train``, with the values that they have now. The unknown value of a column, which
    masking reads, and the padding of a list are not among them."""
    fields = model.fields
    read = np.zeros(fields.num_rows, bool)
    read[list(fields.offsets)] = True
    for column, offset in enumerate(fields.offsets):
        read[train.ids[:, column] + offset] = True
    by_name: dict[str, np.ndarray] = {}
    for position, (name, of) in enumerate(zip(fields.sequences, fields.sequence_of, strict=True)):
        indices = np.unique(train.sequences[name])
        if name in fields.own_lists:
            of_list = np.zeros(fields.values_of_sequences[position], bool)
            of_list[[0, *indices]] = True
            by_name[f"{EMBEDDING}sequences.{position}.values"] = of_list
        else:
            read[indices + fields.offsets[fields.columns.index(of)]] = True
    by_name[f"{EMBEDDING}table"] = read
    return UnreadRows(
        {
            name: (rows, model.get_parameter(name).detach()[rows].clone())
            for name, of in by_name.items()
            if len(rows := torch.from_numpy(np.flatnonzero(~of)))
        }
    )
