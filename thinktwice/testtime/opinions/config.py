"""The options of every kind of second look; :mod:`thinktwice.testtime.config` combines them with a trigger."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from thinktwice.testtime.aggregators import Confidence, Consistency, Mean
from thinktwice.testtime.options import Factor, Options
from thinktwice.testtime.samplers.bernoulli import Bernoulli
from thinktwice.testtime.samplers.exact import Exact
from thinktwice.testtime.samplers.matt import Matt


class _Opinion(Options):
    """Base of all opinions: the extra files that the engine must load for it."""

    uses_counts: ClassVar[bool] = True  # whether its answers depend on training counts
    needs_heads: ClassVar[bool] = False
    needs_retrieval: ClassVar[bool] = False

    @property
    def num_members(self) -> int:
        return 0

    @property
    def needs_combinations(self) -> bool:
        return False


class _Paths(_Opinion):
    max_paths: int = Field(default=8, ge=2, le=64)  # per row, in addition to the base pass
    stop_at: Factor = 0.0  # half width of the mean's interval, in logits, at which paths stop; 0: never
    shrink: bool = False  # weight of the paths: the row's missing support; of the base pass: 1 minus that

    def wanted(self, depth: np.ndarray) -> np.ndarray:
        """Paths [B] of rows of a depth [B] in 0..1: even numbers from 2 to ``max_paths``."""
        largest = 2 * (self.max_paths // 2)
        return np.minimum(2 * np.maximum(np.ceil(self.max_paths / 2 * depth), 1).astype(np.int64), largest)


class FeaturePaths(_Paths):
    """Several views of a row that drop poorly supported values, as in UTTSI."""

    kind: Literal["feature_paths"] = "feature_paths"
    sampler: Annotated[Bernoulli | Exact, Field(discriminator="kind")] = Bernoulli()
    aggregator: Annotated[Mean | Consistency, Field(discriminator="kind")] = Mean()

    @property
    def needs_combinations(self) -> bool:
        return self.sampler.pair_share > 0


class GrownPaths(_Paths):
    """Several views of a row, each grown along frequent combinations of its values, as in MATT."""

    kind: Literal["grown_paths"] = "grown_paths"
    sampler: Matt = Matt()
    aggregator: Annotated[Mean | Consistency | Confidence, Field(discriminator="kind")] = Confidence()

    @property
    def needs_combinations(self) -> bool:
        return True


class Members(_Opinion):
    """Further trunks that were trained independently."""

    kind: Literal["members"] = "members"
    count: int = Field(default=1, ge=1, le=2)
    uses_counts: ClassVar[bool] = False

    @property
    def num_members(self) -> int:
        return self.count


class Redefine(_Opinion):
    """Features redefined by the denoiser from the other fields of the row, as in SGCTR."""

    kind: Literal["redefine"] = "redefine"
    rounds: int = Field(default=2, ge=1, le=4)
    needs_heads: ClassVar[bool] = True


class Retrieve(_Opinion):
    """Outcomes of the user on items like the candidate, read for the request when a row is escalated."""

    kind: Literal["retrieve"] = "retrieve"
    item_field: str = Field(default="item_id", min_length=1)  # the field that identifies items
    uses_counts: ClassVar[bool] = False
    needs_retrieval: ClassVar[bool] = True


AnyOpinion = Annotated[FeaturePaths | GrownPaths | Members | Redefine | Retrieve, Field(discriminator="kind")]
