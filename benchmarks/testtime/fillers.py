"""Ablations of UTTSI's paths: other fill vectors for dropped values, and paths that drop at random. Bundles do not contain
them.

The engine uses a field's learned vector of an unknown value. ``mean`` uses the field's average vector, ``denoiser`` the vector
predicted from the other fields of the row (SGCTR's fill on UTTSI's paths). Shapes as in :mod:`thinktwice.testtime.engine`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from thinktwice.data.encoded import Batch
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Eager, State
from thinktwice.models.blocks import in_blocks
from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime.config import SecondLook, TestTimeConfig
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.heads import FieldHeads
from thinktwice.testtime.opinions.config import FeaturePaths
from thinktwice.testtime.options import Options, Share
from thinktwice.testtime.reliability import DECODED, Reliability
from thinktwice.testtime.samplers import Paths, SamplerInput
from thinktwice.testtime.samplers.bernoulli import KEEP_MIN, antithetic

CERTAIN = 0.95  # support above which a field needs no prediction of its vector


class Uniform(Options):
    """Random paths: every unprotected field is kept with the same probability. The baseline of guided samplers."""

    kind: Literal["uniform"] = "uniform"
    keep_rate: Share = 0.5

    def draw(self, doubt: SamplerInput, max_paths: int) -> Paths:
        """Up to ``max_paths`` paths per row."""
        return antithetic(np.full(doubt.kept.shape, self.keep_rate), doubt, max_paths)


class BlindPaths(FeaturePaths):
    """Feature paths that ignore support."""

    kind: Literal["blind_paths"] = "blind_paths"  # type: ignore[assignment]
    sampler: Uniform = Uniform()  # type: ignore[assignment]

    @property
    def needs_combinations(self) -> bool:
        return False


class BlindLook(SecondLook):
    """A second look by blind paths."""

    opinion: BlindPaths  # type: ignore[assignment]


class BlindConfig(TestTimeConfig):
    """A configuration with blind paths, otherwise as in a bundle."""

    second_look: BlindLook


def keep_rate(trial_model: TrialModel, rows: np.ndarray) -> float:
    """Mean probability of keeping an unprotected field of ids ``rows`` [R, C] on guided paths, for blind paths that drop as
    many fields."""
    r = trial_model.reliability.of(rows)[:, trial_model.reliability.maskable_fields]
    return float(np.maximum(np.sqrt(r), KEEP_MIN).mean()) if r.size else 1.0


def mean_vectors(model: Backbone, reliability: Reliability) -> Tensor:
    """Mean vector of each field, weighted by training counts, [N, D].

    Sequences and vectors, which are never masked, keep their learned vectors.
    """
    out = model.fill().detach().clone()
    count = torch.from_numpy(DECODED[reliability.counts]).to(out.dtype)
    for column, (start, size) in enumerate(zip(reliability.offsets, reliability.num_values, strict=True)):
        weight = count[start : start + size]
        if weight.sum() > 0:
            out[column] = weight @ model.embedding.table.detach()[start : start + size] / weight.sum()
    return out


def row_vectors(model: Backbone, heads: FieldHeads, x: Tensor, doubtful: Tensor, fill: Tensor) -> Tensor:
    """Vectors predicted from the other fields of a row: one more trunk pass per row, shared by its paths.

    The doubtful fields of the row are hidden together, and the heads of :mod:`thinktwice.testtime.heads` predict their vectors
    from the remaining fields. Other fields keep the mask vector, since they are rarely dropped.

    Returns:
        vectors [U, N, D] that replace dropped fields of x [U, N, D]; ``doubtful`` [U, n] bool over the heads' fields.
    """
    hidden = ~doubtful
    mask = x.new_ones(len(x), x.shape[1])
    mask[:, heads.fields] = hidden.to(x.dtype)
    masked = mask[..., None] * x + (1.0 - mask[..., None]) * fill
    predicted = heads.predict(model.trunk(masked))  # [U, n, D]
    out = fill.expand(len(x), -1, -1).clone()
    out[:, heads.fields] = torch.where(doubtful[..., None], predicted, fill[heads.fields])
    return out


class Denoised(Eager):
    """Eager torch with the denoiser's vectors as fill of a row's paths; the base pass is unchanged.

    The state includes the support of a row's values: state is x [B, N, D] and r [B, n] of the unprotected fields.
    """

    def __init__(
        self, model: Backbone, table: Tensor | None, fill: Tensor, reliability: Reliability, heads: FieldHeads
    ):
        super().__init__(model, table, fill)
        self.reliability, self.heads = reliability, heads

    def read(self, batch: Batch) -> State:
        r = self.reliability.of(batch.ids.numpy())[:, self.reliability.maskable_fields]
        return (*super().read(batch), torch.from_numpy(r))

    def score(self, state: State, kept: Tensor | None = None) -> Tensor:
        return super().score(state[:1], kept)

    def path_logits(self, state: State, kept: Tensor, mask: Tensor, fields: Tensor, real: Tensor) -> Tensor:
        x, r = state
        doubtful = (r < CERTAIN) | ~kept[:, fields]

        def scored(x: Tensor, doubtful: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
            fill = row_vectors(self.model, self.heads, x, doubtful, self.fill)
            return self.model.score_paths(torch.where(kept[..., None], x, fill), mask, fill, fields)

        return in_blocks(scored, x, doubtful, kept, mask.float())[real]


@dataclass(frozen=True, eq=False, kw_only=True)
class Filled(TrialModel):
    """A model with other fill vectors than the learned ones.

    Attributes:
        filler: ``mean`` or ``denoiser``, which needs heads among the extras. The denoiser's pass is not counted.
    """

    filler: Literal["mean", "denoiser"]

    @staticmethod
    def of(trial_model: TrialModel, filler: Literal["mean", "denoiser"]) -> Filled:
        return Filled(
            trial_model.model, trial_model.calibration, trial_model.reliability, trial_model.extras, filler=filler
        )

    def engine(self, config: TestTimeConfig) -> Engine:
        heads, mean = self.extras.heads, mean_vectors(self.model, self.reliability)

        def backend(model: Backbone, table: Tensor | None, fill: Tensor) -> Eager:
            if self.filler == "mean":
                return Eager(model, table, mean)
            assert heads is not None
            return Denoised(model, table, fill, self.reliability, heads)

        return Engine(self.model, self.reliability, config, self.calibration, self.extras, backend)
