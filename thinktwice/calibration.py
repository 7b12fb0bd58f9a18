"""How raw logits become log-odds whose probabilities match the clicks: the coefficients, without the fits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: Magnitude of a weight or coefficient; trained ones stay far below, and sums of products beyond it overflow.
MAX_MAGNITUDE = 1e6

Coefficient = Annotated[float, Field(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE, allow_inf_nan=False)]


class Calibration(BaseModel):
    """p = sigmoid(a * z + b), fitted on validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: Coefficient = 1.0
    b: Coefficient = 0.0


class SupportCalibration(BaseModel):
    """Log-odds (a + d u) z + b + c u of a raw logit z, where u in 0..1 is the missing support of the row's values.

    Where the score of thinly supported rows is too sure of itself, or the click rate of newcomers differs, this says so
    without any further pass. It may also follow a drift that comes with novelty, so it is accepted on later rows only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: Coefficient = 1.0
    b: Coefficient = 0.0
    c: Coefficient = 0.0
    d: Coefficient = 0.0
