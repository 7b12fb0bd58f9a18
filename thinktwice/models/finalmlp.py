"""FinalMLP: two MLP streams over differently gated embeddings, fused by a multi-head bilinear product."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinktwice.models.backbone import Backbone, mlp
from thinktwice.models.config import FinalMLPConfig
from thinktwice.models.fields import FieldSpace


class FinalMLP(Backbone):
    """Hidden state: [last layer of stream 1, last layer of stream 2, sum of first-order weights].

    Mao et al., "FinalMLP: An Enhanced Two-Stream MLP Model for CTR Prediction", AAAI 2023 (arXiv 2304.00902). The gate of
    stream 1 reads the fields of the user, that of stream 2 those of the item, as in the paper's user- and item-centric views;
    a log without such fields gets a learned constant as the gate's input, the paper's other form. We differ in two things: both
    streams have the same layers, ``hidden``, and the logit also includes first-order weights.
    """

    config_class = FinalMLPConfig
    many_small_operations = True

    def __init__(self, config: FinalMLPConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        width = fields.num_fields * config.dim
        self.gates = nn.ModuleList(Gate(fields, entity, config) for entity in ("user", "item"))
        self.streams = nn.ModuleList(mlp(width, config.hidden, config.dropout) for _ in range(2))
        self.deep_width = config.hidden[-1] if config.hidden else width
        self.out = nn.Linear(2 * self.deep_width, 1, bias=False)
        self.heads = config.fusion_heads if self.deep_width % config.fusion_heads == 0 else 1
        size = self.deep_width // self.heads
        self.fusion = nn.Parameter(torch.randn(self.heads, size, size) / size)
        self.hidden_width = 2 * self.deep_width + 1

    def trunk(self, x_masked: Tensor) -> Tensor:
        flat = x_masked[..., :-1].flatten(1)
        deep = [stream(flat * gate(x_masked)) for stream, gate in zip(self.streams, self.gates, strict=True)]
        return torch.cat([*deep, x_masked[..., -1].sum(dim=1, keepdim=True)], dim=1)

    def head(self, hidden: Tensor) -> Tensor:
        first = hidden[:, : self.deep_width].unflatten(1, (self.heads, -1)).transpose(0, 1)  # [heads, B, size]
        second = hidden[:, self.deep_width : -1].unflatten(1, (self.heads, -1)).transpose(0, 1)
        product = (torch.bmm(first, self.fusion) * second).sum(dim=(0, 2))
        return self.out(hidden[:, :-1])[:, 0] + product + hidden[:, -1] + self.bias


class Gate(nn.Module):
    """Factors [B, N * dim] in 0..2 of the embeddings, from the fields of one entity."""

    def __init__(self, fields: FieldSpace, entity: str, config: FinalMLPConfig) -> None:
        super().__init__()
        self.positions = [i for i, e in enumerate(fields.entities) if e == entity]
        read = max(1, len(self.positions)) * config.dim
        self.constant = None if self.positions else nn.Parameter(torch.zeros(read))
        self.aggregate = nn.Linear(read, config.gate_width)
        self.project = nn.Linear(config.gate_width, fields.num_fields * config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """The factors for field vectors x [B, N, D]."""
        if self.constant is None:
            context = torch.cat([x[:, i, :-1] for i in self.positions], dim=1)
        else:
            context = self.constant[None]
        return 2.0 * self.project(self.aggregate(context).relu()).sigmoid()
