"""The base pass, which every row gets: plain, values weighted by their support (gate), or rare values masked (filter)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from thinktwice.testtime.options import MAX_COUNT, Factor, Options, Share

if TYPE_CHECKING:
    from thinktwice.testtime.reliability import Reliability

MIN_KEPT = 0.7  # smallest share of all fields that a filter keeps


class Plain(Options):
    """Every value unchanged."""

    kind: Literal["plain"] = "plain"
    uses_counts: ClassVar[bool] = False

    def keep_of_table(self, reliability: Reliability) -> np.ndarray | None:
        """Weight of every row of the embedding table against its field's mask vector, [rows]; None: 1 for all."""
        return None

    def kept(self, reliability: Reliability, ids: np.ndarray, r: np.ndarray) -> np.ndarray | None:
        """bool [B, N]: fields that the pass reads, for ids [B, C] of support r [B, N]; None: all of them."""
        return None


class Gate(Options):
    """A value has weight c / (c + strength * factor * kappa) against its field's mask vector, times its field's share."""

    kind: Literal["gate"] = "gate"
    strength: Factor = 0.0  # 0: counts are ignored
    field_strengths: tuple[Factor, ...] = ()  # factor of each field's strength; empty: 1 for all
    field_shares: tuple[Share, ...] = ()  # weight of each field's values, whatever their count; empty: 1 for all

    @property
    def uses_counts(self) -> bool:
        return self.strength > 0

    def keep_of_table(self, reliability: Reliability) -> np.ndarray | None:
        if self.strength == 0 and not self.field_shares:
            return None
        return reliability.of_table(self.strength, self.field_strengths, self.field_shares)

    def kept(self, reliability: Reliability, ids: np.ndarray, r: np.ndarray) -> np.ndarray | None:
        return None


class Filter(Options):
    """Values with fewer than ``min_count`` training rows are replaced by their field's mask vector."""

    kind: Literal["filter"] = "filter"
    min_count: int = Field(ge=1, le=MAX_COUNT)
    uses_counts: ClassVar[bool] = True

    def keep_of_table(self, reliability: Reliability) -> np.ndarray | None:
        return None

    def kept(self, reliability: Reliability, ids: np.ndarray, r: np.ndarray) -> np.ndarray | None:
        """The best supported fields are restored first, until the share :data:`MIN_KEPT` of all N fields is kept."""
        columns = len(reliability.num_values)
        keep = np.ones(r.shape, bool)
        keep[:, :columns] = reliability.counts_of(ids) >= self.min_count
        keep[:, reliability.protected] = True
        needed = math.ceil(MIN_KEPT * r.shape[1])
        short = np.flatnonzero(keep.sum(axis=1) < needed)
        if len(short):
            keep_short = keep[short]
            order = np.argsort(-np.where(keep_short, 2.0, r[short]), axis=1, kind="stable")
            np.put_along_axis(keep_short, order[:, :needed], True, axis=1)
            keep[short] = keep_short
        return keep


AnyBase = Annotated[Plain | Gate | Filter, Field(discriminator="kind")]
