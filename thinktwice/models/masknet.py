"""MaskNet, parallel form: MLP blocks whose inputs are multiplied by masks that the row itself computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinktwice.models.backbone import Backbone, mlp
from thinktwice.models.config import MaskNetConfig
from thinktwice.models.fields import FieldSpace


class MaskNet(Backbone):
    """Hidden state: [last MLP layer over all blocks, sum of first-order weights].

    Wang, She & Zhang, "MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking Models by Instance-Guided Mask", DLP-KDD
    2021 (arXiv 2102.07619). Every block multiplies the normalised embeddings [B, N * dim] by its instance-guided mask and maps
    them to [B, block_width]; an MLP reads all blocks. The masks here are the paper's, not those of the test-time paths. We
    differ in one thing: the logit also includes first-order weights, as in the other models.
    """

    config_class = MaskNetConfig
    many_small_operations = True

    def __init__(self, config: MaskNetConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        width = fields.num_fields * config.dim
        self.norm = nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList(
            MaskBlock(width, max(1, round(config.reduction * width)), config.block_width)
            for _ in range(config.mask_blocks)
        )
        joined = config.mask_blocks * config.block_width
        self.mlp = mlp(joined, config.hidden, config.dropout)
        self.deep_width = config.hidden[-1] if config.hidden else joined
        self.out = nn.Linear(self.deep_width, 1, bias=False)
        self.hidden_width = self.deep_width + 1

    def trunk(self, x_masked: Tensor) -> Tensor:
        embedding = x_masked[..., :-1]
        flat, normal = embedding.flatten(1), self.norm(embedding).flatten(1)
        deep = self.mlp(torch.cat([block(flat, normal) for block in self.blocks], dim=1))
        return torch.cat([deep, x_masked[..., -1].sum(dim=1, keepdim=True)], dim=1)

    def head(self, hidden: Tensor) -> Tensor:
        return self.out(hidden[:, :-1])[:, 0] + hidden[:, -1] + self.bias


class MaskBlock(nn.Module):
    """``ReLU(LayerNorm(W (mask * normal)))``, where ``mask`` is a two-layer MLP over ``flat``."""

    def __init__(self, width: int, aggregation: int, out: int) -> None:
        super().__init__()
        self.aggregate = nn.Linear(width, aggregation)
        self.project = nn.Linear(aggregation, width)
        self.map = nn.Linear(width, out, bias=False)  # the normalisation has a bias
        self.norm = nn.LayerNorm(out)

    def forward(self, flat: Tensor, normal: Tensor) -> Tensor:
        """[B, out] of embeddings [B, width] as they are and normalised."""
        mask = self.project(self.aggregate(flat).relu())
        return self.norm(self.map(mask * normal)).relu()
