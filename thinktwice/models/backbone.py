"""The interface of all models: rows are embedded to field vectors once, then any number of masked views is scored.

Shapes: B rows, P paths (masked views) of a row, N fields in model order, D = dim + 1 numbers per field: an embedding of
``dim`` and, last, the first-order weight of the value. H is the width of the hidden state that pre-training reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from thinktwice.data.encoded import Batch
from thinktwice.models.config import CONFIGS, GROUP, OWN, BackboneConfig, config_class
from thinktwice.models.embedding import FieldEmbedding
from thinktwice.models.fields import FieldSpace
from thinktwice.models.sequences import MeanPooling, SequenceEncoder
from thinktwice.models.views import Views

if TYPE_CHECKING:
    from collections.abc import Iterator


BACKBONES: dict[str, type[Backbone]] = {}
EMBEDDING = "embedding."  # prefix of the embedding's parameter names


def register_backbone(name: str, kind: type[Backbone]) -> None:
    """Register a backbone under a name, for recipes and for loading bundles in this process.

    A bundle contains weights and the name, never code. A server needs the package that defines the class installed, with an
    entry point in the group ``thinktwice.backbones``.

    Raises:
        ValueError: another class has that name.
    """
    if BACKBONES.setdefault(name, kind) is not kind:
        raise ValueError(f"the backbone {name!r} exists already: choose another name")
    CONFIGS[name] = kind.config_class


def backbone_class(name: str) -> type[Backbone]:
    """The class of a backbone, which may come from an installed package.

    Raises:
        ValueError: there is no such backbone.
    """
    if name not in BACKBONES:
        for point in entry_points(group=GROUP, name=name):
            register_backbone(name, point.load())
    if name not in BACKBONES:
        config_class(name)  # imports the classes that the environment names, or refuses
        if name in OWN:
            register_backbone(name, OWN[name])
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r} is unknown, known are {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]


class Backbone(nn.Module, ABC):
    """Base of all models: an embedding, and a trunk and a head over field vectors.

    A subclass defines ``hidden_width``, :meth:`trunk` and :meth:`head`. They read field vectors only, so that trunks can share
    one embedding; the last number of a hidden state is the sum of first-order weights. It declares its own options in a
    subclass of :class:`BackboneConfig`. :func:`thinktwice.models.conformance.broken_rules` checks it.
    """

    config_class: ClassVar[type[BackboneConfig]] = BackboneConfig
    many_small_operations: ClassVar[bool] = False  # ONNX Runtime then serves it even where wide layers suit bfloat16
    hidden_width: int  # H

    def __init__(self, config: BackboneConfig, fields: FieldSpace) -> None:
        super().__init__()
        self.config = config
        self.fields = fields
        self.num_fields = fields.num_fields
        self.dim = config.dim
        self.embedding = FieldEmbedding(
            fields, config.dim, config.init_sd, lambda fields, name: self.sequence_encoder(config, fields, name)
        )
        self.bias = nn.Parameter(torch.zeros(()))

    @staticmethod
    def sequence_encoder(config: Any, fields: FieldSpace, name: str) -> SequenceEncoder:
        """The encoder of the sequence ``name``: the mean of its values, unless a subclass makes another."""
        return MeanPooling(fields, name)

    @property
    def protected(self) -> tuple[bool, ...]:
        """Which fields [N] no test-time method may mask: those of the schema, and those that a sequence encoder reads."""
        return self.fields.protected

    def embed(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Field vectors X [B, N, D]; ``table`` as in :meth:`FieldEmbedding.forward`."""
        return self.embedding(batch, table)

    def fill(self) -> Tensor:
        """The learned vector of an unknown or masked value, per field [N, D]."""
        return self.embedding.fill()

    def score(self, x: Tensor, mask: Tensor | None = None, fill: Tensor | None = None) -> Tensor:
        """Logits [B, P] of the views of x [B, N, D] that ``mask`` [B, P, N] keeps.

        A mask entry of 1 keeps the field, 0 replaces it by ``fill`` ([N, D] or [B, N, D], default :meth:`fill`), a fraction
        mixes both. Without a mask P is 1 and nothing is replaced.
        """
        if mask is None:
            return self.head(self.trunk(x))[:, None]
        fill = self.fill() if fill is None else fill
        views = torch.lerp(fill[:, None] if fill.dim() == 3 else fill, x[:, None], mask[..., None])  # [B, P, N, D]
        flat = views.flatten(0, 1)
        return self.head(self.trunk(flat)).view(mask.shape[0], mask.shape[1])

    def score_paths(self, x: Tensor, mask: Tensor, fill: Tensor, fields: Tensor) -> Tensor:
        """Logits [U, P] of views of x [U, N, D] in which only ``fields`` [n] int64, distinct, may be replaced.

        Equals :meth:`score` up to rounding, with less work. ``mask`` [U, P, n] covers ``fields`` only, in their order; all
        other fields are kept. ``fill`` is [N, D] or [U, N, D].
        """
        hidden = self.trunk_paths(Views.of(x, mask, fill, fields))
        return self.head(hidden.flatten(0, 1)).view(mask.shape[0], mask.shape[1])

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of whole rows."""
        return self.score(self.embed(batch))[:, 0]

    @abstractmethod
    def trunk(self, x_masked: Tensor) -> Tensor:
        """Hidden state [B, H] of field vectors [B, N, D]."""

    def trunk_paths(self, views: Views) -> Tensor:
        """Hidden states [U, P, H] of the views. A subclass that can update instead of recompute overrides it."""
        return self.trunk(views.whole().flatten(0, 1)).unflatten(0, views.dropped.shape[:2])

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Logits [B] from the hidden state [B, H]."""

    def trunk_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of everything except the embedding."""
        return ((name, value) for name, value in self.named_parameters() if not name.startswith(EMBEDDING))


def mlp(width: int, hidden: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Linear, ReLU (and dropout) layers from ``width`` to ``hidden[-1]``."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(inplace=True)]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers)
