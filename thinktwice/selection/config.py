"""Settings of the selection of a test-time configuration on validation rows."""

from __future__ import annotations

import math
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field

from thinktwice.choices import MAX_COST, SearchMode, listed
from thinktwice.errors import PipelineError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FitConfig(_Frozen):
    """How the engine is fitted on validation rows. The grids contain 0 (no effect) on purpose.

    ``mode`` restricts the search: ``lean`` (ours) tries every mode and ships, of those that pass the acceptance test within
    ``max_cost``, the one with the best fit; any other name tries only that mode, whatever it costs. ``off`` is always a candidate.
    With ``ship_unproven`` the best fit ships even if the acceptance test refuses it: for a challenger, which an experiment tests.
    """

    mode: SearchMode = "lean"
    ship_unproven: bool = False
    max_rows: int = Field(default=60_000, ge=100)  # validation rows used; larger parts are subsampled evenly over time
    strengths: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    field_factors: tuple[float, ...] = (
        0.0,
        0.25,
        0.5,
        2.0,
        4.0,
        16.0,
    )  # factors of a gate's strength, tried field by field
    field_shares: tuple[float, ...] = (0.8, 0.6, 0.4, 0.2, 0.0)  # shares of a gate without counts, tried field by field
    min_counts: tuple[int, ...] = (0, 1, 2, 3, 5, 10, 20, 50)
    explored_share: float = Field(default=0.2, gt=0, lt=1)  # share of rows that the trigger of `uttsi` escalates
    member_shares: tuple[float, ...] = (0.1, 0.15, 0.2)  # shares of rows that members may score
    retrieved_shares: tuple[float, ...] = (0.1, 0.2, 0.4)  # shares of rows that outcomes may be retrieved for
    max_paths: tuple[int, ...] = Field(default=(4, 8), min_length=1)
    max_cost: float = Field(default=MAX_COST, ge=1)  # limit for `lean`: measured time relative to the plain model
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1
    )  # of the acceptance intervals; against `off`, joint over all candidates


def search(mode: str, settings: FitConfig, max_cost: float | None = None) -> FitConfig:
    """``settings`` that search ``mode`` only, or for ``lean`` every mode within ``max_cost`` times the time of the plain model.

    Raises:
        PipelineError: there is no such mode, or the limit is below 1 or not finite.
    """
    if mode not in get_args(SearchMode):
        raise PipelineError(f"test-time mode {mode!r} is unknown: choose one of {listed(SearchMode)}")
    limit = settings.max_cost if max_cost is None else max_cost
    if not (math.isfinite(limit) and limit >= 1):
        raise PipelineError(f"the limit of cost is {limit:g} times the plain model's time: give a number of at least 1")
    return FitConfig.model_validate(settings.model_dump() | {"mode": mode, "max_cost": limit})
