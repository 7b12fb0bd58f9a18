"""Several trunks trained together over one embedding: every batch is embedded once and passed to all of them.

Shapes: B rows, K members, N fields, D numbers per field.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from thinktwice.data.encoded import Batch
from thinktwice.models.backbone import Backbone
from thinktwice.models.config import BackboneConfig
from thinktwice.models.embedding import FieldEmbedding
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone

FACTOR_SD = 0.5  # random signs, the other initialisation of BatchEnsemble, give less diverse members


class Joint(nn.Module, ABC):
    """K members in training. ``base`` makes the field vectors of all of them.

    It is trained as one model: the loss is the mean of the members' losses, and its output is the mean of their logits.
    """

    def __init__(self, base: Backbone) -> None:
        super().__init__()
        self.base = base

    @property
    def embedding(self) -> FieldEmbedding:
        """The embedding that all members share."""
        return self.base.embedding

    def each(self, batch: Batch) -> Tensor:
        """Logits [B, K] of all members."""
        return torch.stack(self.logits(self.base.embed(batch)), dim=1)

    def forward(self, batch: Batch) -> Tensor:
        """Mean logit [B]."""
        return self.each(batch).mean(dim=1)

    @abstractmethod
    def logits(self, x: Tensor) -> list[Tensor]:
        """One logit [B] per member of the field vectors x [B, N, D]."""

    @abstractmethod
    def members(self) -> list[Backbone]:
        """The members (not copies) as models in evaluation mode that share one embedding."""


Trainee = Backbone | Joint


class SharedTables(Joint):
    """Independent trunks over one embedding; member i is initialised like a model with seed ``seed + i``."""

    def __init__(self, config: BackboneConfig, fields: FieldSpace, *, count: int, seed: int) -> None:
        super().__init__(build_backbone(config, fields, seed=seed))
        self.others = nn.ModuleList(build_backbone(config, fields, seed=seed + i) for i in range(1, count))
        for member in self.others:
            member.embedding = self.base.embedding

    def logits(self, x: Tensor) -> list[Tensor]:
        return [member.score(x)[:, 0] for member in (self.base, *self.others)]

    def members(self) -> list[Backbone]:
        return [member.eval() for member in (self.base, *self.others)]


class RankOne(Joint):
    """Members whose matrices are one shared matrix times a rank-one matrix of their own, elementwise.

    BatchEnsemble (Wen, Tran & Ba, ICLR 2020, arXiv 2002.06715): ``W_m = W * outer(s_m, r_m)``, factors initialised around 1,
    and separate biases per member. Three differences: the loss of a batch is the mean over all members on the same rows; the
    products are formed before the matrix product rather than around it, so that any backbone can be a member; and all
    parameters with two or more axes are matrices, attention included.
    """

    def __init__(self, config: BackboneConfig, fields: FieldSpace, *, count: int, seed: int) -> None:
        super().__init__(build_backbone(config, fields, seed=seed))
        self.count = count
        generator = torch.Generator().manual_seed(seed)
        trunk = list(self.base.trunk_parameters())
        matrices = [(name, value.shape) for name, value in trunk if value.dim() > 1]
        self.names = [name for name, _ in matrices]
        self.left = nn.ParameterList(_factors((count, *shape[:-1]), generator) for _, shape in matrices)
        self.right = nn.ParameterList(_factors((count, *shape[:-2], shape[-1]), generator) for _, shape in matrices)
        vectors = [(name, value) for name, value in trunk if value.dim() < 2]
        self.own_names = [name for name, _ in vectors]
        self.own = nn.ParameterList(value.detach().expand(count, *value.shape).clone() for _, value in vectors)

    def weights(self, position: int) -> dict[str, Tensor]:
        """The parameters of a member's trunk by their names in a backbone."""
        factors = zip(self.names, self.left, self.right, strict=True)
        out = {
            name: self.base.get_parameter(name) * left[position][..., None] * right[position][..., None, :]
            for name, left, right in factors
        }
        return out | {name: values[position] for name, values in zip(self.own_names, self.own, strict=True)}

    def logits(self, x: Tensor) -> list[Tensor]:
        scorer = _Scorer(self.base)
        member_weights = [
            {f"model.{name}": value for name, value in self.weights(k).items()} for k in range(self.count)
        ]
        return [torch.func.functional_call(scorer, weights, (x,)) for weights in member_weights]

    @torch.no_grad()
    def members(self) -> list[Backbone]:
        out = []
        for position in range(self.count):
            member = build_backbone(self.base.config, self.base.fields)
            for name, value in self.weights(position).items():
                member.get_parameter(name).copy_(value)
            member.embedding = self.base.embedding
            out.append(member.eval())
        return out


class _Scorer(nn.Module):
    """Scores field vectors when called, for :func:`torch.func.functional_call`."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.score(x)[:, 0]


def _factors(shape: tuple[int, ...], generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(1.0 + FACTOR_SD * torch.randn(shape, generator=generator))
