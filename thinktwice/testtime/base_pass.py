"""The pass that every row gets: plain, with values weighed by their support (gate), or without the rare ones (filter)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from thinktwice.testtime.options import MAX_COUNT, Factor, Options, Share

if TYPE_CHECKING:
    from thinktwice.testtime.reliability import Reliability

MIN_KEPT = 0.7  # share of all fields that a filter keeps at least


class Plain(Options):
    """Every value as it is."""

    kind: Literal["plain"] = "plain"
    uses_counts: ClassVar[bool] = False

    def keep_of_table(self, reliability: Reliability) -> np.ndarray | None:
        """Share that every row of the embedding table keeps against its field's mask vector, [rows]; None: all of it."""
        return None

    def kept(self, reliability: Reliability, ids: np.ndarray, r: np.ndarray) -> np.ndarray | None:
        """bool [B, N]: fields that the pass reads, for ids [B, C] of support r [B, N]; None: all of them."""
        return None


class Gate(Options):
    """A value weighs c / (c + strength * factor * kappa) against its field's mask vector, times the share of its field."""

    kind: Literal["gate"] = "gate"
    strength: Factor = 0.0  # 0: counts decide nothing
    field_strengths: tuple[Factor, ...] = ()  # factor of each field's strength; empty: 1 for all
    field_shares: tuple[Share, ...] = ()  # weight of each field's values, however often they came; empty: 1 for all

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
    """Values that training saw fewer than ``min_count`` times are replaced by their field's mask vector."""

    kind: Literal["filter"] = "filter"
    min_count: int = Field(ge=1, le=MAX_COUNT)
    uses_counts: ClassVar[bool] = True

    def keep_of_table(self, reliability: Reliability) -> np.ndarray | None:
        return None

    def kept(self, reliability: Reliability, ids: np.ndarray, r: np.ndarray) -> np.ndarray | None:
        """The best supported fields come back first until the share :data:`MIN_KEPT` of all N fields is kept."""
        columns = len(reliability.num_values)
        keep = np.ones(r.shape, bool)
        keep[:, :columns] = reliability.counts_of(ids) >= self.min_count
        keep[:, reliability.protected] = True
        needed = math.ceil(MIN_KEPT * r.shape[1])
        short = np.flatnonzero(keep.sum(axis=1) < needed)
        if len(short):
            few = keep[short]
            order = np.argsort(-np.where(few, 2.0, r[short]), axis=1, kind="stable")
            np.put_along_axis(few, order[:, :needed], True, axis=1)
            keep[short] = few
        return keep


AnyBase = Annotated[Plain | Gate | Filter, Field(discriminator="kind")]
