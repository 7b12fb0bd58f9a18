"""A backbone that restores masked elements, the label included, with one prediction head per field.

Shapes as in :mod:`thinktwice.models.backbone`. The label is one more element of the sample: a visible label shifts the field
vectors by a learned vector per class, a hidden one adds nothing. So a row without masked fields and with a hidden label is
computed exactly as in fine-tuning and serving, and all parameters carry over.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.models.backbone import Backbone
from thinktwice.pretrain.config import PretrainConfig

HIDDEN_LABEL = 2  # label tokens are 0, 1 and this


class Denoiser(nn.Module):
    """Backbone, label vectors and per-field heads.

    Args:
        log_share: log of the train share of every joint table row [sum(num_values)] (unseen rows: a small constant).
    """

    def __init__(self, backbone: Backbone, config: PretrainConfig, log_share: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        fields = backbone.fields
        self.label_shift = nn.Parameter(torch.randn(2, fields.num_fields, backbone.dim + 1) * backbone.config.init_sd)
        self.num_targets = len(fields.num_values) + len(fields.sequences)
        self.heads = nn.Linear(backbone.hidden_width, self.num_targets * backbone.dim)
        self.vector_heads = nn.ModuleList(nn.Linear(backbone.hidden_width, dim) for dim in fields.vector_dims)
        self.register_buffer("log_share", log_share, persistent=False)
        self.log_share: Tensor
        small = [size <= config.full_softmax for size in fields.num_values]
        self.small = small
        self.offset = nn.ParameterList(
            nn.Parameter(log_share[start : start + size].clone()) if full else nn.Parameter(torch.zeros(0))
            for start, size, full in zip(fields.offsets, fields.num_values, small, strict=True)
        )

    def hidden(self, x: Tensor, keep: Tensor, label: Tensor) -> Tensor:
        """Hidden state [B, H] of x [B, N, D] with the fields where ``keep`` [B, N] is 0 masked; ``label`` [B] in {0, 1, 2}."""
        kept = keep[..., None]
        masked = kept * x + (1.0 - kept) * self.backbone.fill()
        shift = torch.cat([self.label_shift, torch.zeros_like(self.label_shift[:1])])
        # An embedding lookup, not `shift[label]`: many rows share a token, and the gradient of indexing is summed in a
        # nondeterministic order.
        shifted = F.embedding(label, shift.flatten(1)).unflatten(1, shift.shape[1:])
        return self.backbone.trunk(masked + shifted)

    def forward(self, batch: Batch, keep: Tensor, label: Tensor) -> Tensor:
        """Click logits [B] of masked rows with a visible or hidden label."""
        return self.backbone.head(self.hidden(self.backbone.embed(batch), keep, label))

    def predictions(self, hidden: Tensor) -> Tensor:
        """Predicted unit vectors [B, num_targets, dim]: columns first, then sequences."""
        out = self.heads(hidden).view(len(hidden), self.num_targets, self.backbone.dim)
        return F.normalize(out, dim=-1)

    def field_loss(
        self, column: int, predicted: Tensor, target: Tensor, candidates: Tensor | None = None, draws: int = 0
    ) -> Tensor:
        """Negative log-likelihood [M] of local values ``target`` [M] of a column under unit vectors [M, dim].

        Small vocabularies use the full softmax. Large ones are scored against ``candidates`` [K] (the distinct local values
        among ``draws`` values of the batch), with the logQ correction and without candidates that equal the target. This loss
        only separates the target from the candidates, so it is lower than the full loss.
        """
        offset = self.backbone.fields.offsets[column]
        scale = 1.0 / self.config.temperature
        if self.small[column]:
            size = self.backbone.fields.num_values[column]
            every = torch.arange(offset, offset + size, device=predicted.device)
            table = F.normalize(self.backbone.embedding.rows(every)[:, :-1], dim=-1)
            return F.cross_entropy(scale * predicted @ table.T + self.offset[column], target, reduction="none")
        assert candidates is not None
        target_vector = F.normalize(self.backbone.embedding.rows(target + offset)[..., :-1], dim=-1)
        candidate_vectors = F.normalize(self.backbone.embedding.rows(candidates + offset)[..., :-1], dim=-1)
        positive = scale * (predicted * target_vector).sum(dim=-1) - log_inclusion(
            self.log_share[target + offset], draws
        )
        negative = scale * predicted @ candidate_vectors.T - log_inclusion(self.log_share[candidates + offset], draws)
        negative = negative.masked_fill(candidates[None] == target[:, None], -torch.inf)
        return torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1) - positive


def log_inclusion(log_share: Tensor, draws: int) -> Tensor:
    """Log of the probability that a value with a given share occurs at least once among ``draws`` values of a batch.

    Candidates are distinct, so the correction must use the probability of occurring, not the expected count. A random cut to
    fewer candidates is the same factor for every value and cancels.
    """
    return torch.log(-torch.expm1(draws * torch.log1p(-log_share.exp())))
