"""DIN: target attention over sequences, and an MLP over all field vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinktwice.models.backbone import Backbone, mlp
from thinktwice.models.config import DINConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.sequences import SequenceEncoder, TargetAttention


class DIN(Backbone):
    """Hidden state: [last MLP layer, sum of first-order weights].

    Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018 (arXiv 1706.06978). A sequence is the sum
    of its values weighted by how well each fits the row's own value of the same column: the history of items by the item to be
    scored. A log without sequences gets a plain MLP. We differ in three things: the attention unit has ReLU instead of Dice,
    whose batch statistics would let rows see each other; its weights are not trained with the mini-batch aware regularisation
    of the paper, but with the L2 that all models share; and the logit also includes first-order weights.

    The vector of a sequence depends on the target column, so hiding that column in a view would leave what the sequence says
    about it: target columns are protected from test-time masks (:meth:`protected`).
    """

    config_class = DINConfig

    def __init__(self, config: DINConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        width = fields.num_fields * config.dim
        self.mlp = mlp(width, config.hidden, config.dropout)
        self.deep_width = config.hidden[-1] if config.hidden else width
        self.out = nn.Linear(self.deep_width, 1, bias=False)
        self.hidden_width = self.deep_width + 1

    @staticmethod
    def sequence_encoder(config: DINConfig, fields: FieldSpace, name: str) -> SequenceEncoder:
        return TargetAttention(fields, name, config.dim, config.attention_hidden)

    @property
    def protected(self) -> tuple[bool, ...]:
        targets = set(self.fields.sequence_of)
        return tuple(p or n in targets for n, p in zip(self.fields.names, self.fields.protected, strict=True))

    def trunk(self, x_masked: Tensor) -> Tensor:
        deep = self.mlp(x_masked[..., :-1].flatten(1))
        return torch.cat([deep, x_masked[..., -1].sum(dim=1, keepdim=True)], dim=1)

    def head(self, hidden: Tensor) -> Tensor:
        return self.out(hidden[:, :-1])[:, 0] + hidden[:, -1] + self.bias
