"""DCNv2, parallel form: full-matrix cross layers beside an MLP, joined by the output layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinktwice.models.backbone import Backbone, BackboneConfig, mlp
from thinktwice.models.fields import FieldSpace


class DCNv2(Backbone):
    """Hidden state: [last cross layer, last MLP layer, sum of first-order weights]."""

    def __init__(self, config: BackboneConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        width = fields.num_fields * config.dim
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(config.cross_layers))
        self.mlp = mlp(width, config.hidden, config.dropout)
        self.joint_width = width + (config.hidden[-1] if config.hidden else width)
        self.out = nn.Linear(self.joint_width, 1, bias=False)
        self.hidden_width = self.joint_width + 1

    def trunk(self, x_masked: Tensor) -> Tensor:
        flat = x_masked[..., :-1].flatten(1)
        crossed = flat
        for layer in self.cross:
            crossed = flat * layer(crossed) + crossed
        linear = x_masked[..., -1].sum(dim=1, keepdim=True)
        return torch.cat([crossed, self.mlp(flat), linear], dim=1)

    def head(self, hidden: Tensor) -> Tensor:
        return self.out(hidden[:, :-1])[:, 0] + hidden[:, -1] + self.bias
