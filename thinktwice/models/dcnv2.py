"""DCNv2, parallel form: full-matrix cross layers in parallel with an MLP, joined by the output layer."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor, nn

from thinktwice.models.backbone import Backbone, mlp
from thinktwice.models.config import DCNv2Config
from thinktwice.models.fields import FieldSpace
from thinktwice.models.views import Views


class DCNv2(Backbone):
    """Hidden state: [last cross layer, last MLP layer, sum of first-order weights].

    The parallel form with full matrices of Wang et al., "DCN V2: Improved Deep & Cross Network", WWW 2021 (arXiv 2008.13535).
    We differ in one thing: the logit also includes first-order weights, as in the other models.
    """

    config_class = DCNv2Config

    def __init__(self, config: DCNv2Config, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        width = fields.num_fields * config.dim
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(config.cross_layers))
        self.mlp = mlp(width, config.hidden, config.dropout)
        self.joint_width = width + (config.hidden[-1] if config.hidden else width)
        self.out = nn.Linear(self.joint_width, 1, bias=False)
        self.hidden_width = self.joint_width + 1

    def trunk(self, x_masked: Tensor) -> Tensor:
        flat = x_masked[..., :-1].flatten(1)
        crossed = self._crossed(flat, self.cross[0](flat))
        return torch.cat([crossed, self.mlp(flat), x_masked[..., -1].sum(dim=1, keepdim=True)], dim=1)

    def trunk_paths(self, views: Views) -> Tensor:
        crossed = self._crossed(views.flat(), views.linear(self.cross[0]))
        return torch.cat([crossed, views.mlp(self.mlp), views.first_order()], dim=2)

    def head(self, hidden: Tensor) -> Tensor:
        return self.out(hidden[:, :-1])[:, 0] + hidden[:, -1] + self.bias

    def _crossed(self, flat: Tensor, first: Tensor) -> Tensor:
        """The last cross layer of embeddings [..., N * dim], given the product of the first one with them."""
        crossed = torch.addcmul(flat, flat, first)
        for layer in islice(self.cross, 1, None):
            crossed = torch.addcmul(crossed, flat, layer(crossed))
        return crossed
