"""Weights of the fields' losses, learned from how hard each field is to restore: HeteGenCTR (arXiv 2605.24986).

Three modes behind one interface, for losses l of N fields and the entropy H of each field's values, the loss of a model without context:

``kendall``, as published: minimise the sum of exp(-s) l + s / 2 over the difficulties s too. At its equilibrium exp(-s) = 1 / (2 l): a
field that is hard to restore gets *less* weight. That is so for every form that is minimised jointly: the best weight is the derivative
of a concave function of l, and does not grow with it. It equalises relative progress, which is useful, but is the opposite of what is
claimed for it.

``dro``, faithful to the claim: the difficulty of a field is l / H, the share of its entropy that stays unexplained, whatever its
vocabulary. The weights N softmax(s) maximise the weighted difficulty plus an entropy term; the unique equilibrium is w proportional to
exp(difficulty / TAU). So hard fields get more weight, at most e^2 times that of others.

``uniform_norm``, the control: l / H, and nothing is learned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinktwice.pretrain.config import Balancing

TAU = 0.5
LIMIT = 3.0  # of a difficulty in the mode kendall
BOUNDS = (0.25, 4.0)  # of a weight in the mode dro
DECAY = 0.95  # of the moving mean of a loss
LEAST_ENTROPY = 0.05  # nats: a field of one value has none
PATIENCE, MOVED = 2000, 0.01  # a field that has not moved in so many steps is frozen: effort there would go into noise


class Balance(nn.Module):
    """Weights of N fields, trained with the model.

    Attributes:
        s: the difficulties [N]; trained.
        entropy: H [N] in nats, known for full vocabularies, else a moving mean (:meth:`observe`).
        source: the position [N] whose entropy is that of a field: of a sequence, its column.
        loss: moving mean of every loss [N]; NaN before the first.
        steps: number of batches so far.
    """

    def __init__(self, mode: Balancing, entropy: Tensor, source: Tensor | None = None) -> None:
        super().__init__()
        self.mode = mode
        number = len(entropy)
        self.s = nn.Parameter(torch.zeros(number), requires_grad=mode != "uniform_norm")
        self.register_buffer("entropy", entropy.clone())
        self.register_buffer("source", torch.arange(number) if source is None else source, persistent=False)
        self.register_buffer("loss", torch.full((number,), torch.nan))
        self.register_buffer("first", torch.full((number,), torch.nan))
        self.register_buffer("mark", torch.full((number,), torch.inf))
        self.register_buffer("frozen", torch.zeros(number))
        self.register_buffer("steps", torch.zeros(()))
        self.entropy: Tensor
        self.source: Tensor
        self.loss: Tensor
        self.first: Tensor
        self.mark: Tensor
        self.frozen: Tensor
        self.steps: Tensor

    def difficulty(self) -> Tensor:
        """Share of the entropy that stays unexplained [N]; 1 where no loss is known yet."""
        return (self.loss / self._scale()).nan_to_num(1.0)

    def start(self) -> Tensor:
        """:meth:`difficulty` in the first batch."""
        return (self.first / self._scale()).nan_to_num(1.0)

    def _scale(self) -> Tensor:
        return self.entropy[self.source].nan_to_num(1.0).clamp_min(LEAST_ENTROPY)

    def weights(self) -> Tensor:
        """The weights [N] relative to those of equal treatment, without a gradient."""
        s = self.s.detach()
        match self.mode:
            case "kendall":
                return (-s.clamp(-LIMIT, LIMIT)).exp()
            case "dro":
                return (len(s) * s.softmax(dim=0)).clamp(*BOUNDS)
            case "uniform_norm":
                return torch.ones_like(s)

    def equilibrium(self) -> Tensor:
        """The weights [N] to which fixed losses would lead."""
        match self.mode:
            case "kendall":
                return (0.5 / self.loss.nan_to_num(0.5)).clamp(torch.e**-LIMIT, torch.e**LIMIT)
            case "dro":
                return (len(self.s) * (self.difficulty() / TAU).softmax(dim=0)).clamp(*BOUNDS)
            case "uniform_norm":
                return torch.ones_like(self.s)

    def observe(self, position: int, entropy: Tensor) -> None:
        """A sample of the entropy of a field: the loss of a model without context under the same candidates."""
        sample = entropy.detach()
        known = self.entropy[position]
        self.entropy[position] = sample if bool(known.isnan()) else torch.lerp(sample, known, DECAY)

    def forward(self, losses: Tensor, seen: Tensor) -> Tensor:
        """The loss to minimise: of ``losses`` [N], where ``seen`` [N] bool says which fields were masked in this batch."""
        self._remember(losses.detach(), seen)
        scale = self._scale()
        zero = torch.zeros_like(losses)
        match self.mode:
            case "kendall":
                s = self.s.clamp(-LIMIT, LIMIT)
                # Beyond the limits the clamp has no gradient that leads back.
                each = torch.exp(-s) * losses + 0.5 * s + (self.s - s).square()
                return torch.where(seen, each, zero).mean()
            case "dro":
                w = torch.where(self.frozen > 0, self.s.detach(), self.s).softmax(dim=0)
                entropy = -(w * w.log()).sum()
                gain = (w * self.difficulty()).sum() + TAU * entropy  # maximised: it is subtracted
                return torch.where(seen, self.weights() * losses / scale, zero).mean() - gain
            case "uniform_norm":
                return torch.where(seen, losses / scale, zero).mean()

    @torch.no_grad()
    def _remember(self, losses: Tensor, seen: Tensor) -> None:
        self.steps += 1
        new = seen & losses.isfinite()
        mean = torch.where(self.loss.isnan(), losses, torch.lerp(losses, self.loss, DECAY))
        self.loss.copy_(torch.where(new, mean, self.loss))
        self.first.copy_(torch.where(self.first.isnan(), self.loss, self.first))
        if self.mode == "dro" and int(self.steps) % PATIENCE == 0:
            self.frozen.copy_(((self.loss - self.mark).abs() < MOVED * self.mark).float())
            self.mark.copy_(self.loss.nan_to_num(torch.inf))
