"""A backbone that restores masked elements, the label included, with one prediction head per field.

Shapes as in :mod:`thinktwice.models.backbone`; S numbers per field in the outputs of a transformer. The label is one more element of the sample: a visible label shifts the field
vectors by a learned vector per class, a hidden one adds nothing. So a row without masked fields and with a hidden label is
computed exactly as in fine-tuning and serving, and all parameters carry over.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.models.backbone import Backbone
from thinktwice.models.hstu import HSTU
from thinktwice.pretrain.balance import Balance
from thinktwice.pretrain.config import PretrainConfig

HIDDEN_LABEL = 2  # label tokens are 0, 1 and this
TIME_WAVES = 8
INPUT_SCALE = 0.1  # of a field's weight on its input, where there is no attention to guide


class Denoiser(nn.Module):
    """Backbone, label vectors and per-field heads.

    Args:
        log_share: log of the train share of every joint table row [sum(num_values)] (unseen rows: a small constant).
        balance: learns the weights of the fields; None: all weigh the same.
    """

    def __init__(
        self, backbone: Backbone, config: PretrainConfig, log_share: Tensor, balance: Balance | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        fields = backbone.fields
        self.label_shift = nn.Parameter(torch.randn(2, fields.num_fields, backbone.dim + 1) * backbone.config.init_sd)
        self.num_targets = len(fields.num_values) + len(fields.sequences)
        self.per_field = isinstance(backbone, HSTU)
        if isinstance(backbone, HSTU):
            self.field_heads = nn.Parameter(
                torch.randn(self.num_targets, backbone.state_width, backbone.dim) * backbone.state_width**-0.5
            )
        else:
            self.heads = nn.Linear(backbone.hidden_width, self.num_targets * backbone.dim)
        self.places = nn.ParameterList(
            nn.Parameter(torch.zeros(length, backbone.dim)) for length in fields.sequence_lengths
        )
        if fields.counters is not None:
            self.counter_head = nn.Linear(backbone.hidden_width, len(fields.counters.means))
        if config.time_embedding:
            self.time = nn.Linear(TIME_WAVES, fields.num_fields * (backbone.dim + 1), bias=False)
            nn.init.zeros_(self.time.weight)
        self.balance = balance
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
        return self.encoded(masked, label)[0]

    def encoded(
        self, masked: Tensor, label: Tensor, rate: Tensor | None = None, guidance: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Hidden state [B, H], and what the heads of the fields read: it, or [B, N, S] of a transformer.

        Args:
            masked: field vectors [B, N, D] of masked rows.
            label: tokens [B].
            rate: mask rates [B], for the time embedding, which vanishes at rate 0.
            guidance: how much the weights of fields scale their input, 0 (as in fine-tuning) to 1; for trunks without attention.
        """
        shift = torch.cat([self.label_shift, torch.zeros_like(self.label_shift[:1])])
        # An embedding lookup, not `shift[label]`: many rows share a token, and the gradient of indexing is summed in a
        # nondeterministic order.
        shifted = F.embedding(label, shift.flatten(1)).unflatten(1, shift.shape[1:])
        x = masked + shifted
        if self.config.time_embedding and rate is not None:
            waves = torch.sin(torch.pi * rate[:, None] * torch.arange(1, TIME_WAVES + 1, device=rate.device))
            x = x + (rate[:, None] * self.time(waves)).view_as(x)
        backbone = self.backbone
        if isinstance(backbone, HSTU):
            states = backbone.field_states(x)
            return backbone.readout(states, x), states
        if self.balance is not None and guidance:
            x = x * (1.0 + guidance * INPUT_SCALE * (self.balance.weights() - 1.0))[:, None]
        hidden = backbone.trunk(x)
        return hidden, hidden

    def guide(self) -> None:
        """Let the weights of the fields guide the attention of a transformer."""
        if self.balance is not None and isinstance(self.backbone, HSTU):
            self.backbone.log_weights.copy_(self.balance.weights().log())

    def forward(self, batch: Batch, keep: Tensor, label: Tensor) -> Tensor:
        """Click logits [B] of masked rows with a visible or hidden label."""
        return self.backbone.head(self.hidden(self.backbone.embed(batch), keep, label))

    def predictions(self, read: Tensor) -> Tensor:
        """Predicted unit vectors [B, num_targets, dim]: columns first, then sequences. ``read`` as from :meth:`encoded`."""
        return F.normalize(self.outputs(read), dim=-1)

    def outputs(self, read: Tensor) -> Tensor:
        """Predicted vectors [B, num_targets, dim] before they are normalised."""
        if self.per_field:
            states = read[:, : self.num_targets].transpose(0, 1)  # [targets, B, S]
            return torch.bmm(states, self.field_heads).transpose(0, 1)
        return self.heads(read).view(len(read), self.num_targets, self.backbone.dim)

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
        if self.balance is not None:
            self._observe(column, target, candidates, draws)
        target_vector = F.normalize(self.backbone.embedding.rows(target + offset)[..., :-1], dim=-1)
        candidate_vectors = F.normalize(self.backbone.embedding.rows(candidates + offset)[..., :-1], dim=-1)
        positive = scale * (predicted * target_vector).sum(dim=-1) - log_inclusion(
            self.log_share[target + offset], draws
        )
        negative = scale * predicted @ candidate_vectors.T - log_inclusion(self.log_share[candidates + offset], draws)
        negative = negative.masked_fill(candidates[None] == target[:, None], -torch.inf)
        return torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1) - positive

    @torch.no_grad()
    def _observe(self, column: int, target: Tensor, candidates: Tensor, draws: int) -> None:
        """Tell the balance the loss of a model that knows only the shares of the values, under these candidates."""
        assert self.balance is not None
        share = self.log_share[self.backbone.fields.offsets[column] :]
        positive = share[target] - log_inclusion(share[target], draws)
        negative = (share[candidates] - log_inclusion(share[candidates], draws)).expand(len(target), -1)
        negative = negative.masked_fill(candidates[None] == target[:, None], -torch.inf)
        loss = torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1) - positive
        self.balance.observe(column, loss.mean())


def log_inclusion(log_share: Tensor, draws: int) -> Tensor:
    """Log of the probability that a value with a given share occurs at least once among ``draws`` values of a batch.

    Candidates are distinct, so the correction must use the probability of occurring, not the expected count. A random cut to
    fewer candidates is the same factor for every value and cancels.
    """
    return torch.log(-torch.expm1(draws * torch.log1p(-log_share.exp())))
