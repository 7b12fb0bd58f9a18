"""A transformer over the fields of a row, whose layers are those of HSTU: an output per field, and an MLP over all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinktwice.models.backbone import Backbone, mlp
from thinktwice.models.config import HSTUConfig
from thinktwice.models.fields import FieldSpace


class HSTU(Backbone):
    """Hidden state: [last MLP layer over the outputs of all fields, sum of first-order weights].

    Layers of Zhai et al., "Actions Speak Louder than Words", ICML 2024 (arXiv 2402.17152): pointwise SiLU attention without a
    softmax, gated by a projection of the input. We differ in three things: the sequence is the fields of one row, so there are
    no relative positions and every field has a learned vector instead; attention can be guided by the weights that pre-training
    has learned for the fields (arXiv 2605.24986); and the logit also includes first-order weights, as in the other models.

    Attributes:
        log_weights: logs of the weights of the fields [N]. A field with a large weight gets more of the attention of others, and
            attends more sharply. Zeros, the start, have no effect; after pre-training they are constants.
    """

    config_class = HSTUConfig
    many_small_operations = True

    def __init__(self, config: HSTUConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        width = config.attention_heads * config.attention_width
        self.state_width = width
        self.enter = nn.Linear(config.dim, width)
        self.field = nn.Parameter(torch.randn(fields.num_fields, width) * config.init_sd)
        self.layers = nn.ModuleList(HSTULayer(width, config.attention_heads) for _ in range(config.attention_layers))
        self.register_buffer("log_weights", torch.zeros(fields.num_fields))
        self.log_weights: Tensor
        flat = fields.num_fields * width
        self.mlp = mlp(flat, config.hidden, config.dropout)
        self.deep_width = config.hidden[-1] if config.hidden else flat
        self.out = nn.Linear(self.deep_width, 1, bias=False)
        self.hidden_width = self.deep_width + 1

    def field_states(self, x: Tensor) -> Tensor:
        """Outputs [B, N, state_width] of field vectors [B, N, D]."""
        states = self.enter(x[..., :-1]) + self.field
        for layer in self.layers:
            states = states + layer(states, self.log_weights)
        return states

    def readout(self, states: Tensor, x: Tensor) -> Tensor:
        """Hidden states [B, H] of the outputs of all fields."""
        return torch.cat([self.mlp(states.flatten(1)), x[..., -1].sum(dim=1, keepdim=True)], dim=1)

    def trunk(self, x_masked: Tensor) -> Tensor:
        return self.readout(self.field_states(x_masked), x_masked)

    def head(self, hidden: Tensor) -> Tensor:
        return self.out(hidden[:, :-1])[:, 0] + hidden[:, -1] + self.bias


class HSTULayer(nn.Module):
    """``W (LayerNorm(attention) * u)``, where u, v, q and k are SiLU projections of the normalised input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 4 * width)
        self.norm_attended = nn.LayerNorm(width)
        self.leave = nn.Linear(width, width)

    def forward(self, states: Tensor, log_weights: Tensor) -> Tensor:
        """[B, N, W] of states [B, N, W]."""
        rows, fields, width = states.shape
        projected = F.silu(self.project(self.norm(states))).view(rows, fields, 4, self.heads, width // self.heads)
        u, *parts = projected.permute(2, 0, 3, 1, 4)  # each [B, heads, N, W / heads]
        v, q, k = (part.flatten(0, 1) for part in parts)
        q = q * ((0.5 * log_weights).exp() * (width // self.heads) ** -0.5)[:, None]
        attention = F.silu(torch.bmm(q, k.transpose(1, 2)) + log_weights) / fields
        mixed = torch.bmm(attention, v).view(rows, self.heads, fields, -1).transpose(1, 2).reshape(rows, fields, width)
        gate = u.transpose(1, 2).reshape(rows, fields, width)
        return self.leave(self.norm_attended(mixed) * gate)
