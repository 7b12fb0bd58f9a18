"""DeepFM: first-order weights, pairwise products of embeddings, and an MLP over all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinktwice.models.backbone import Backbone, mlp
from thinktwice.models.config import DeepFMConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.fm import field_sums, second_order
from thinktwice.models.views import Views


class DeepFM(Backbone):
    """Hidden state: [last MLP layer, sum of pairwise products per embedding dimension, sum of first-order weights].

    Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017 (arXiv 1703.04247). We
    differ in one thing: numbers, sequences, vectors and counters are one field each, with one embedding.
    """

    config_class = DeepFMConfig

    def __init__(self, config: DeepFMConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        self.mlp = mlp(fields.num_fields * config.dim, config.hidden, config.dropout)
        self.deep_width = config.hidden[-1] if config.hidden else fields.num_fields * config.dim
        self.out = nn.Linear(self.deep_width, 1, bias=False)
        self.hidden_width = self.deep_width + config.dim + 1

    def trunk(self, x_masked: Tensor) -> Tensor:
        flat, total, squares = field_sums(x_masked)
        return torch.cat([self.mlp(flat), *second_order(total, squares)], dim=1)

    def trunk_paths(self, views: Views) -> Tensor:
        return torch.cat([views.mlp(self.mlp), *second_order(views.total(), views.squares())], dim=2)

    def head(self, hidden: Tensor) -> Tensor:
        deep, linear = hidden[:, : self.deep_width], hidden[:, self.deep_width :]
        return self.out(deep)[:, 0] + linear.sum(dim=1) + self.bias
