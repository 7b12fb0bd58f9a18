"""AutoInt+: self-attention over the fields in parallel with an MLP, joined by the output layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinktwice.models.backbone import Backbone, mlp
from thinktwice.models.config import AutoIntConfig
from thinktwice.models.fields import FieldSpace


class AutoInt(Backbone):
    """Hidden state: [last attention layer of all fields, last MLP layer, sum of first-order weights].

    AutoInt+ of Song et al., "AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks", CIKM
    2019 (arXiv 1810.11921). We differ in two things: inner products are divided by the root of the width of a head, and
    the logit also includes first-order weights, as in the other models.
    """

    config_class = AutoIntConfig
    many_small_operations = True

    def __init__(self, config: AutoIntConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        out = config.attention_heads * config.attention_width
        widths = [config.dim] + [out] * (config.attention_layers - 1)
        self.attention = nn.ModuleList(Attention(w, config.attention_heads, config.attention_width) for w in widths)
        flat = fields.num_fields * config.dim
        self.mlp = mlp(flat, config.hidden, config.dropout)
        self.joint_width = fields.num_fields * out + (config.hidden[-1] if config.hidden else flat)
        self.out = nn.Linear(self.joint_width, 1, bias=False)
        self.hidden_width = self.joint_width + 1

    def trunk(self, x_masked: Tensor) -> Tensor:
        flat = x_masked[..., :-1].flatten(1)
        return torch.cat([self._attended(flat), self.mlp(flat), x_masked[..., -1].sum(dim=1, keepdim=True)], dim=1)

    def head(self, hidden: Tensor) -> Tensor:
        return self.out(hidden[:, :-1])[:, 0] + hidden[:, -1] + self.bias

    def _attended(self, flat: Tensor) -> Tensor:
        """The last attention layer [B, N * heads * width] of embeddings [B, N * dim]."""
        fields = flat.view(-1, self.num_fields, self.dim)
        for layer in self.attention:
            fields = layer(fields)
        return fields.flatten(1)


class Attention(nn.Module):
    """Self-attention: per head, a field becomes ReLU(similarity-weighted mean of all fields + a projection of itself).

    The products are written out: the fused kernel of torch is no faster on a CPU at 20 fields of 16 numbers, and its
    work is not counted by :func:`thinktwice.models.cost.flops`.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, head_width
        self.scale = head_width**-0.5
        # query, key, value, residual, of all heads
        self.weight = nn.Parameter(torch.empty(4 * heads, width, head_width).uniform_(-1.0, 1.0) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, heads * head_width] of x [B, N, width]."""
        rows, fields, _ = x.shape
        projected = torch.matmul(x.flatten(0, 1), self.weight)  # [4 * heads, B * N, head_width]
        query, key, value, residual = projected.view(4, self.heads * rows, fields, self.width)
        similarity = torch.bmm(query * self.scale, key.transpose(1, 2)).softmax(dim=2)
        mixed = torch.baddbmm(residual, similarity, value).relu_()
        return mixed.view(self.heads, rows, fields, self.width).permute(1, 2, 0, 3).flatten(2)
