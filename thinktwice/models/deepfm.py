"""DeepFM: first-order weights, pairwise products of embeddings, and an MLP over all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinktwice.models.backbone import Backbone, BackboneConfig, mlp
from thinktwice.models.fields import FieldSpace


class DeepFM(Backbone):
    """Hidden state: [last MLP layer, sum of pairwise products per embedding dimension, sum of first-order weights]."""

    def __init__(self, config: BackboneConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        self.mlp = mlp(fields.num_fields * config.dim, config.hidden, config.dropout)
        self.deep_width = config.hidden[-1] if config.hidden else fields.num_fields * config.dim
        self.out = nn.Linear(self.deep_width, 1, bias=False)
        self.hidden_width = self.deep_width + config.dim + 1

    def trunk(self, x_masked: Tensor) -> Tensor:
        embedding = x_masked[..., :-1]
        total = embedding.sum(dim=1)
        pairs = 0.5 * (total * total - (embedding * embedding).sum(dim=1))
        linear = x_masked[..., -1].sum(dim=1, keepdim=True)
        return torch.cat([self.mlp(embedding.flatten(1)), pairs, linear], dim=1)

    def head(self, hidden: Tensor) -> Tensor:
        deep, rest = hidden[:, : self.deep_width], hidden[:, self.deep_width :]
        return self.out(deep)[:, 0] + rest.sum(dim=1) + self.bias
